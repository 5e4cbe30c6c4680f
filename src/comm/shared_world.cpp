#include "comm/shared_world.h"

#include <sched.h>

#include <algorithm>
#include <set>
#include <thread>

#include "comm/nccl_loader.h"
#include "comm/shm_group.h"
#include "dfm/base/log.h"

namespace dfm::comm {
namespace {

int num_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  return sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

std::vector<std::string> keys_of(const std::string& what, int number, const std::vector<int>& ranks) {
  std::vector<std::string> keys;
  for (const int rank : ranks) keys.push_back(fmt::format("{}/{}/{}", what, number, rank));
  return keys;
}

}  // namespace

SharedWorld::SharedWorld(const Launch& launch, const WorldOptions& options) : launch_(launch), device_(options.device) {
  for (int rank = 0; rank < launch.world_size; ++rank) everybody_.push_back(rank);
  const auto start = std::chrono::steady_clock::now();
  store_ = open_store(launch, options.timeout);
  set_joining_store(store_);
  try {
    const std::chrono::duration<double> left = options.timeout - (std::chrono::steady_clock::now() - start);
    members_ = meet(*store_, launch, this_member(launch, options.device), left);
    choose_backend(options);
    auto couriers = connect_store(launch, options.timeout);
    if (!couriers) throw StoreLost("no second connection");
    watchdog_ = std::make_unique<Watchdog>(launch, options.command, options.timeout, members_, std::move(couriers),
                                           operations_);
  } catch (const StoreLost& error) {
    throw CommError("{}:{}: lost {} while the ranks met ({})", launch.master_address, launch.master_port,
                    launch.uses_agent_store ? "the agent's store" : "rank 0's store", error.what());
  }
  set_joining_store(nullptr);
}

SharedWorld::~SharedWorld() {
  if (watchdog_) watchdog_->stop();
}

void SharedWorld::choose_backend(const WorldOptions& options) {
  backend_ = options.backend == Backend::kAuto ? (device_.is_cuda() ? Backend::kNccl : Backend::kShm) : options.backend;
  if (backend_ == Backend::kNccl && !device_.is_cuda()) {
    if (launch_.rank == 0) {
      log::warning("comm",
                   "dist.distributed_backend: nccl needs a GPU a rank, and this run computes on the CPU: "
                   "taking shm");
    }
    backend_ = Backend::kShm;
  }
}

// At the first group: a run without groups, such as prepare's, may be anywhere.
void SharedWorld::check_backend() const {
  std::set<std::string> realms;
  std::string hosts;
  for (const Member& member : members_) {
    if (realms.insert(member.realm).second) hosts += (hosts.empty() ? "" : ", ") + member.host;
  }
  if (backend_ == Backend::kShm && realms.size() > 1) {
    throw ConfigError("dist.distributed_backend: got shm over {} hosts ({}), want ranks of one host; hint: {}",
                      realms.size(), hosts,
                      device_.is_cuda() ? "dist.distributed_backend=nccl" : "start all ranks on one host, or use GPUs");
  }
  if (backend_ != Backend::kNccl) return;
  std::map<std::string, int> holders;
  for (const Member& member : members_) {
    const auto [at, is_new] = holders.try_emplace(member.realm + "\n" + member.device, member.rank);
    if (is_new) continue;
    throw ConfigError(
        "dist.distributed_backend: got nccl with ranks {} and {} on one GPU of host {}, want a GPU for each; hint: "
        "dist.distributed_backend=shm shares a GPU (slow)",
        at->second, member.rank, member.host);
  }
}

template <typename Use>
auto SharedWorld::with_store(Use&& use) {
  try {
    return use(*store_);
  } catch (const StoreLost& error) {
    std::this_thread::sleep_for(std::chrono::seconds(4));  // the watchdog knows more about the cause, and ends us
    throw CommError("{}:{}: lost the ranks' store ({})", launch_.master_address, launch_.master_port, error.what());
  }
}

void SharedWorld::await(const std::vector<std::string>& keys) {
  auto pause = std::chrono::microseconds(500);
  while (!with_store([&](KeyStore& store) { return store.has(keys); })) {
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::microseconds(20000));
  }
}

GroupPtr SharedWorld::group(const std::string& name, const std::vector<int>& ranks) {
  const auto at = std::find(ranks.begin(), ranks.end(), launch_.rank);
  if (at == ranks.end() || !std::is_sorted(ranks.begin(), ranks.end()) || ranks.front() < 0 ||
      ranks.back() >= launch_.world_size) {
    throw InternalError("group {}: got ranks {} on rank {}, want them ascending, with this one, below {}", name,
                        list_ranks(ranks), launch_.rank, launch_.world_size);
  }
  if (ranks.size() == 1) return alone(launch_.rank);
  check_backend();
  GroupRequest request;
  request.name = name;
  request.ranks = ranks;
  request.rank = static_cast<int>(at - ranks.begin());
  request.device = device_;
  request.may_spin = num_cores() >= launch_.local_world_size;
  request.watch = &operations_;
  const std::string id = name + "/" + list_ranks(ranks);
  const std::string key = fmt::format("group/{}/{}", id, num_groups_[id]++);
  request.share = [this, key, is_first = request.rank == 0](const std::string& mine) {
    if (is_first) with_store([&](KeyStore& store) { store.set(key, mine); });
    await({key});
    return with_store([&](KeyStore& store) { return store.get(key).value_or(""); });
  };
  const std::uint64_t operation = operations_.begin(name, ranks, "set-up");
  GroupPtr made = backend_ == Backend::kNccl ? make_nccl_group(request) : make_shm_group(request);
  operations_.end(operation);
  groups_.push_back(made);
  return made;
}

GroupPtr SharedWorld::all() {
  if (!all_) all_ = group("world", everybody_);
  return all_;
}

std::vector<std::string> SharedWorld::gather_text(const std::string& mine) {
  const std::uint64_t operation = operations_.begin("run", everybody_, "gather_text");
  const int number = num_gathered_++;
  const auto keys = keys_of("text", number, everybody_);
  with_store([&](KeyStore& store) { store.set(keys[static_cast<std::size_t>(launch_.rank)], mine); });
  await(keys);
  std::vector<std::string> texts;
  for (const std::string& key : keys) {
    texts.push_back(with_store([&](KeyStore& store) { return store.get(key).value_or(""); }));
  }
  // All are in this gather, so all have read the one before.
  if (number > 0) {
    const auto before = keys_of("text", number - 1, {launch_.rank});
    with_store([&](KeyStore& store) { store.remove(before[0]); });
  }
  operations_.end(operation);
  return texts;
}

void SharedWorld::leave() {
  const std::uint64_t operation = operations_.begin("run", everybody_, "leave");
  with_store([](KeyStore& store) { store.add("left", 1); });
  auto pause = std::chrono::milliseconds(1);
  while (with_store([](KeyStore& store) { return store.add("left", 0); }) < launch_.world_size) {
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(50));
  }
  watchdog_->let_all_go();
  try {
    // Rank 0 takes the store with it, so it goes last; five seconds for those that need none any more.
    store_->add("gone", 1);
    for (int i = 0; hosts_store(launch_) && i < 500 && store_->add("gone", 0) < launch_.world_size; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  } catch (const StoreLost&) {  // all is done
  }
  operations_.end(operation);
  watchdog_->stop();
}

}  // namespace dfm::comm
