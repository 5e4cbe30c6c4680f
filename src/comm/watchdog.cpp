#include "comm/watchdog.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "dfm/base/progress.h"

namespace dfm::comm {
namespace {

using namespace std::chrono_literals;

constexpr auto kRound = 300ms;       // of both threads
constexpr auto kBeat = 1s;           // between states, when nothing changes
constexpr auto kSilence = 8s;        // of a rank on another host: it is dead
constexpr auto kAnswer = 3s;         // how long the store may take
constexpr auto kOwnEnd = 5s;         // how long the main thread may take to end after its own report
constexpr int kMostHeard = 16;       // ranks of this host whose state is kept against the loss of the store
constexpr auto kStoppedItself = 5s;  // a longer round: this process was stopped, or starved

// glibc has wrappers only since 2.36.
int open_process(int pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }

std::string state_key(int rank) { return fmt::format("state/{}", rank); }

}  // namespace

Watchdog::Watchdog(const Launch& launch, std::string command, Seconds timeout, std::vector<Member> members,
                   std::shared_ptr<KeyStore> store, Operations& operations)
    : launch_(launch),
      command_(std::move(command)),
      timeout_(timeout),
      members_(std::move(members)),
      store_(std::move(store)),
      operations_(operations) {
  open_peers();
  wake_watcher_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  courier_ = std::thread([this] { run_courier(); });
  watcher_ = std::thread([this] { run_watcher(); });
}

void Watchdog::open_peers() {
  const Member& me = members_[static_cast<std::size_t>(launch_.rank)];
  const int next = (launch_.rank + 1) % launch_.world_size;
  for (const Member& member : members_) {
    if (member.rank == me.rank) continue;
    if (member.realm == me.realm) {
      Peer peer{member.rank, open_process(member.pid), false};
      peer.is_dead = peer.process < 0 && errno == ESRCH;
      if (peer.process >= 0 || peer.is_dead) {
        peers_.push_back(peer);
        continue;
      }
    }
    // A stopped or starved process of this host is not dead; that can be told only of processes one can see.
    if (member.rank == next) beating_ = next;
  }
}

void Watchdog::stop() {
  if (stopping_.exchange(true)) return;
  wake_courier_.notify_all();
  (void)eventfd_write(wake_watcher_, 1);
  const auto deadline = Clock::now() + kAnswer;
  while (!courier_has_ended_ && Clock::now() < deadline) std::this_thread::sleep_for(1ms);
  if (!courier_has_ended_) {  // a thread that cannot be joined: the store has stopped answering
    fmt::print(stderr, "dfm {}: error: {}:{}: got no answer from the ranks' store at the end\n", command_,
               launch_.master_address, launch_.master_port);
    exit_now(ExitCode::kComm);
  }
  courier_.join();
  watcher_.join();
  for (const Peer& peer : peers_) close(peer.process);
  close(wake_watcher_);
}

// ---- the courier ----------------------------------------------------------------------------------------------------

template <typename Answer>
std::optional<Answer> Watchdog::ask(std::function<Answer(KeyStore&)> question) {
  const auto promise = std::make_shared<std::promise<Answer>>();
  std::future<Answer> future = promise->get_future();
  {
    const std::lock_guard lock(mutex_);
    if (lost_ || stopping_ || is_deaf_) return std::nullopt;
    questions_.emplace_back(
        [promise, question = std::move(question)](KeyStore& store) { promise->set_value(question(store)); });
  }
  wake_courier_.notify_all();
  if (future.wait_for(kAnswer) != std::future_status::ready) {
    is_deaf_ = true;  // asking again would only cost time; until the courier comes round
    return std::nullopt;
  }
  try {
    return future.get();
  } catch (const std::future_error&) {  // dropped: the store is lost
    return std::nullopt;
  }
}

void Watchdog::run_courier() {
  std::unique_lock lock(mutex_);
  try {
    while (!stopping_) {
      deliver(lock);
      lock.unlock();
      look_for_failure();
      publish();
      if (Clock::now() - heard_at_ >= kBeat) {
        heard_at_ = Clock::now();
        if (beating_) hear(*beating_);
        for (std::size_t i = 0; i < peers_.size() && i < kMostHeard; ++i) hear(peers_[i].rank);
      }
      lock.lock();
      courier_seen_ = Clock::now();
      is_deaf_ = false;
      wake_courier_.wait_for(lock, kRound, [&] { return stopping_ || !questions_.empty(); });
    }
  } catch (const StoreLost& error) {
    if (!lock.owns_lock()) lock.lock();
    lost_ = error.what();
    (void)eventfd_write(wake_watcher_, 1);
  }
  questions_.clear();
  lock.unlock();
  courier_has_ended_ = true;
}

void Watchdog::deliver(std::unique_lock<std::mutex>& lock) {
  while (!questions_.empty()) {
    const auto question = std::move(questions_.front());
    questions_.pop_front();
    lock.unlock();
    question(*store_);
    lock.lock();
  }
}

void Watchdog::look_for_failure() {
  {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
  }
  const auto text = store_->get("failure");
  if (!text) return;
  const std::lock_guard lock(mutex_);
  failure_ = FailureNote::from_text(*text);
  (void)eventfd_write(wake_watcher_, 1);
}

void Watchdog::publish() {
  const std::string text = operations_.state().to_text();
  const auto now = Clock::now();
  if (text == published_ && now - published_at_ < kBeat) return;
  published_ = text;
  published_at_ = now;
  store_->set(state_key(launch_.rank), fmt::format("{}\n{}", ++beat_, text));
}

void Watchdog::hear(int rank) {
  const auto text = store_->get(state_key(rank));
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  Heard& heard = heard_.try_emplace(rank, Heard{"", now, {}}).first->second;
  if (!text) return;
  const std::size_t end = std::min(text->find('\n'), text->size());
  if (text->substr(0, end) == heard.beat) return;
  heard = Heard{text->substr(0, end), now, RankState::from_text(text->substr(end))};
}

// ---- failures -------------------------------------------------------------------------------------------------------

bool Watchdog::claim(ExitCode code, const std::string& line, bool wants_label) {
  if (has_claimed_.exchange(true)) {
    // The other thread of this process is about to print and to end it.
    std::this_thread::sleep_for(kOwnEnd);
    return false;
  }
  const FailureNote mine{code, launch_.rank, line};
  const auto standing = ask<FailureNote>([mine](KeyStore& store) { return place_claim(store, mine); });
  if (!standing) {  // no store: the lowest rank of this host speaks for all
    std::unique_lock lock(mutex_);
    if (failure_) return false;
    failure_ = mine;
    lock.unlock();
    has_printed_alone_ = is_lowest_alive();
    return has_printed_alone_;
  }
  {
    const std::lock_guard lock(mutex_);
    failure_ = standing;
  }
  if (standing->rank != launch_.rank) return false;
  if (wants_label) {
    const int size = launch_.world_size;
    const auto everywhere = ask<bool>([mine, size](KeyStore& store) { return is_everywhere(store, mine, size); });
    const std::lock_guard lock(mutex_);
    label_ = everywhere.value_or(false) ? "" : fmt::format("rank {}: ", launch_.rank);
  }
  return true;
}

bool Watchdog::report(ExitCode code, const std::string& line) {
  has_reported_ = true;
  return claim(code, line, true);
}

ExitCode Watchdog::first_cause() const {
  const std::lock_guard lock(mutex_);
  return failure_ ? failure_->code : ExitCode::kInternal;
}

std::string Watchdog::label() const {
  const std::lock_guard lock(mutex_);
  return label_;
}

void Watchdog::quit(ExitCode cause) {
  if (!is_acknowledged_.exchange(true)) {
    const Launch launch = launch_;
    ask<bool>([launch](KeyStore& store) {
      acknowledge_failure(store, launch);
      return true;
    });
  }
  if (has_printed_alone_) std::this_thread::sleep_for(kAnswer);  // the others look whether this process is alive
  exit_now(cause);
}

void Watchdog::end_with(const std::string& line) {
  keep_from_termination();
  if (claim(ExitCode::kComm, line, false)) {
    Progress::clear_line();
    fmt::print(stderr, "dfm {}: error: {}\n", command_, line);
  }
  quit(first_cause());
}

bool Watchdog::is_lowest_alive() {
  for (const Peer& peer : peers_) {
    // Without a store although rank 0, which has it, is alive: it is stopped.
    if (peer.rank == 0 && !launch_.uses_agent_store) continue;
    pollfd query{peer.process, POLLIN, 0};
    const bool is_dead = peer.is_dead || peer.process < 0 || poll(&query, 1, 0) > 0;
    if (peer.rank < launch_.rank && !is_dead) return false;
  }
  return true;
}

bool Watchdog::has_everybody_left() {
  const int size = launch_.world_size;
  return ask<bool>([size](KeyStore& store) { return store.add("left", 0) >= size; }).value_or(false);
}

// ---- the watcher ----------------------------------------------------------------------------------------------------

void Watchdog::run_watcher() {
  auto last = Clock::now();
  while (!stopping_) {
    look_after_peers(static_cast<int>(std::chrono::milliseconds(kRound).count()));
    if (stopping_) return;
    const auto round = Clock::now() - last;
    last = Clock::now();
    if (round > kStoppedItself) operations_.forgive(round);
    check_failure_of_others();
    check_dead();
    check_store();
    try {
      operations_.ask_asynchronous();
    } catch (const Error& error) {  // what NCCL or the GPU says of an operation under way
      end_with(error.what());
    }
    check_operations();
  }
}

void Watchdog::look_after_peers(int wait_milliseconds) {
  std::vector<pollfd> queries{{wake_watcher_, POLLIN, 0}};
  for (const Peer& peer : peers_) queries.push_back({peer.is_dead ? -1 : peer.process, POLLIN, 0});
  if (poll(queries.data(), queries.size(), wait_milliseconds) <= 0) return;
  eventfd_t ignored = 0;
  (void)eventfd_read(wake_watcher_, &ignored);
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    if (queries[i + 1].revents != 0) peers_[i].is_dead = true;
  }
}

void Watchdog::check_failure_of_others() {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_) return;
  }
  // The main thread may be about to report the very same, or be on its way out.
  const auto deadline = Clock::now() + kOwnEnd;
  std::this_thread::sleep_for(kRound);
  while (has_reported_ && Clock::now() < deadline) std::this_thread::sleep_for(50ms);
  quit(first_cause());
}

void Watchdog::check_dead() {
  const auto dead = std::find_if(peers_.begin(), peers_.end(), [](const Peer& peer) { return peer.is_dead; });
  std::optional<int> silent;
  if (dead == peers_.end() && beating_) {
    const std::lock_guard lock(mutex_);
    const auto heard = heard_.find(*beating_);
    // With a courier that does not come round itself, nothing was heard because nobody listened.
    const bool listens = Clock::now() - courier_seen_ < kBeat + 1s;
    if (heard != heard_.end() && listens && Clock::now() - heard->second.changed > kSilence) silent = *beating_;
  }
  if (dead == peers_.end() && !silent) return;
  // It may have reported its failure, or a signal may be ending all of us: then there is nothing to add.
  std::this_thread::sleep_for(kRound);
  if (stopping_ || all_have_left_ || has_everybody_left()) return;
  check_failure_of_others();
  end_with(silent ? describe_dead(*silent, fmt::format("nothing heard for {} s", kSilence.count()))
                  : describe_dead(dead->rank, "died without a word"));
}

std::string Watchdog::describe_dead(int rank, const std::string& how) {
  const Member& member = members_[static_cast<std::size_t>(rank)];
  ask<bool>([this, rank](KeyStore&) {  // without an answer, what was heard before serves as well
    hear(rank);
    return true;
  });
  std::string where = "nothing known of where";
  {
    const std::lock_guard lock(mutex_);
    const auto heard = heard_.find(rank);
    if (heard != heard_.end() && !heard->second.beat.empty()) {
      const RankState& state = heard->second.state;
      where = "last at " + state.place;
      if (state.oldest) where += ", in " + state.oldest->describe();
    }
  }
  return fmt::format(
      "rank {} (pid {} on host {}): {}, {}; hint: look at its own output, and for the kernel's "
      "out-of-memory killer (dmesg)",
      rank, member.pid, member.host, how, where);
}

void Watchdog::check_store() {
  if (all_have_left_) return;
  std::string why;
  {
    const std::lock_guard lock(mutex_);
    const bool is_far = launch_.local_world_size < launch_.world_size;
    if (lost_) {
      why = *lost_;
    } else if (is_far && Clock::now() - courier_seen_ > kSilence + 2s) {
      why = fmt::format("no answer for {} s", (kSilence + 2s).count());
    } else {
      return;
    }
  }
  if (has_reported_) return check_failure_of_others();
  // Most likely a rank has died with it, whose end shows a moment later.
  for (int i = 0; i < 5; ++i) look_after_peers(100);
  if (stopping_ || all_have_left_) return;
  check_dead();
  end_with(fmt::format("{}:{}: lost {} ({}); hint: look at {}", launch_.master_address, launch_.master_port,
                       launch_.uses_agent_store ? "the store of the agent that started the ranks" : "rank 0's store",
                       why, launch_.uses_agent_store ? "the launcher's output" : "the output of rank 0"));
}

void Watchdog::collect_states(std::vector<std::optional<RankState>>& states, std::vector<bool>& is_silent) {
  const auto size = static_cast<std::size_t>(launch_.world_size);
  states.assign(size, std::nullopt);
  is_silent.assign(size, false);
  // Twice, more than two heartbeats apart: whose has not moved in between is silent.
  std::vector<std::string> beats(size);
  for (const bool is_second : {false, true}) {
    if (is_second && is_deaf_) break;
    if (is_second) std::this_thread::sleep_for(2 * kBeat + 500ms);
    for (std::size_t rank = 0; rank < size; ++rank) {
      const int number = static_cast<int>(rank);
      if (number == launch_.rank) continue;
      const bool is_answered = ask<bool>([this, number](KeyStore&) {
                                 hear(number);
                                 return true;
                               }).has_value();
      const std::lock_guard lock(mutex_);
      const auto heard = heard_.find(number);
      if (heard == heard_.end() || heard->second.beat.empty()) continue;
      states[rank] = heard->second.state;
      if (is_second) is_silent[rank] = is_answered && heard->second.beat == beats[rank];
      beats[rank] = heard->second.beat;
    }
  }
  states[static_cast<std::size_t>(launch_.rank)] = operations_.state();
}

void Watchdog::check_operations() {
  const auto oldest = operations_.state().oldest;
  if (!oldest || oldest->seconds < timeout_.count()) return;
  std::vector<std::optional<RankState>> states;
  std::vector<bool> is_silent;
  collect_states(states, is_silent);
  check_failure_of_others();
  const auto still = operations_.state().oldest;
  if (!still || still->seconds < timeout_.count()) return;  // it has ended at the last moment
  std::string line = describe_stuck(*oldest, states, is_silent);
  if (is_deaf_ && !launch_.uses_agent_store) line += "; rank 0, which has the ranks' store, does not answer";
  end_with(line + "; hint: dist.distributed_timeout_minutes sets how long ranks wait");
}

}  // namespace dfm::comm
