#include "comm/rendezvous.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "comm/operations.h"
#include "dfm/base/hash.h"

namespace dfm::comm {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

std::mutex joining_mutex;
std::shared_ptr<KeyStore> joining;

std::string member_key(int rank) { return fmt::format("member/{}", rank); }
std::string arrived_key(int rank) { return fmt::format("arrived/{}", rank); }
std::string report_key(const FailureNote& note) { return fmt::format("failed/{:016x}", fnv1a64(note.line)); }

std::string describe_time(Seconds time) {
  return time.count() < 100 ? fmt::format("{:.0f} s", time.count()) : fmt::format("{:.0f} min", time.count() / 60);
}

void check_like_first(const Member& first, const Member& me) {
  if (me.world_size != first.world_size) {
    throw CommError("rank {} on host {}: got a world of {} ranks, want {} as rank 0 on host {} has", me.rank, me.host,
                    me.world_size, first.world_size, first.host);
  }
  if (me.binary != first.binary) {
    throw CommError(
        "rank {} on host {}: got another program ({}), want that of rank 0 on host {} ({}); hint: install the "
        "same dfm everywhere",
        me.rank, me.host, me.binary, first.host, first.binary);
  }
}

[[noreturn]] void throw_missing(KeyStore& store, const Launch& launch, Seconds timeout) {
  // None arrives before rank 0 is there to compare with. One that came and then died has not arrived either.
  const bool has_first = store.has({member_key(0)});
  std::vector<int> missing;
  for (int rank = 0; rank < launch.world_size; ++rank) {
    if (!store.has({has_first ? arrived_key(rank) : member_key(rank)})) missing.push_back(rank);
  }
  throw CommError(
      "{}: not here after {}, want all {} ranks at {}:{}; hint: look at their own output; "
      "dist.distributed_timeout_minutes sets the time",
      name_ranks(missing), describe_time(timeout), launch.world_size, launch.master_address, launch.master_port);
}

}  // namespace

std::string FailureNote::to_text() const { return fmt::format("{}\n{}\n{}", static_cast<int>(code), rank, line); }

FailureNote FailureNote::from_text(const std::string& text) {
  FailureNote note;
  int code = static_cast<int>(ExitCode::kInternal);
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, code);
  note.code = static_cast<ExitCode>(code);
  if (parsed.ptr != end) {
    const auto rank = std::from_chars(parsed.ptr + 1, end, note.rank);
    if (rank.ptr != end) note.line.assign(rank.ptr + 1, end);
  }
  return note;
}

FailureNote place_claim(KeyStore& store, const FailureNote& mine) {
  store.add(report_key(mine), 1);
  return FailureNote::from_text(store.claim("failure", mine.to_text()));
}

bool is_everywhere(KeyStore& store, const FailureNote& mine, int world_size) {
  for (int i = 0; i < 25; ++i) {
    if (store.add(report_key(mine), 0) >= world_size) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

std::shared_ptr<KeyStore> connect_store(const Launch& launch, Seconds timeout) {
  // In a thread of its own: what listens at the port may be no store, and never answer.
  struct Attempt {
    std::mutex mutex;
    std::condition_variable ended;
    bool has_ended = false;
    std::shared_ptr<KeyStore> store;
  };
  const auto attempt = std::make_shared<Attempt>();
  std::thread([attempt, launch, timeout] {
    std::shared_ptr<KeyStore> store;
    try {
      store = std::make_shared<KeyStore>(launch, KeyStore::Role::kClient, timeout);
    } catch (const std::exception&) {  // no store: null says so
    }
    const std::lock_guard lock(attempt->mutex);
    attempt->store = std::move(store);
    attempt->has_ended = true;
    attempt->ended.notify_all();
  }).detach();
  std::unique_lock lock(attempt->mutex);
  attempt->ended.wait_for(lock, timeout + std::chrono::seconds(1), [&] { return attempt->has_ended; });
  return attempt->store;
}

std::shared_ptr<KeyStore> open_store(const Launch& launch, Seconds timeout) {
  if (hosts_store(launch)) {
    try {
      return std::make_shared<KeyStore>(launch, KeyStore::Role::kServer, timeout);
    } catch (const StoreLost& error) {
      throw CommError(
          "port {} of {}: got no socket ({}), want one for rank 0 to open; hint: MASTER_ADDR is to be a "
          "name of the host of rank 0",
          launch.master_port, launch.master_address, error.what());
    }
  }
  if (auto store = connect_store(launch, timeout)) return store;
  throw CommError("{}:{}: got no answer within {}, want {}; hint: {}", launch.master_address, launch.master_port,
                  describe_time(timeout),
                  launch.uses_agent_store ? "the store of the agent that started this rank" : "rank 0's store",
                  launch.uses_agent_store ? "start all ranks anew"
                                          : "look at the output of rank 0; is MASTER_ADDR its host, and can it be "
                                            "reached from here");
}

std::vector<Member> meet(KeyStore& store, const Launch& launch, const Member& me, Seconds timeout) {
  const auto deadline = Clock::now() + timeout;
  if (store.add(fmt::format("present/{}", me.rank), 1) > 1) {
    throw CommError(
        "rank {}: got two processes with this rank at {}:{}, want one; hint: another run uses this port, set "
        "MASTER_PORT to another one",
        me.rank, launch.master_address, launch.master_port);
  }
  store.set(member_key(me.rank), me.to_text());
  bool has_compared = false;  // only then it counts as arrived: rank 0 must not take another world's rank for its own
  for (auto pause = std::chrono::milliseconds(2);; pause = std::min(pause * 2, std::chrono::milliseconds(50))) {
    if (!has_compared) {
      if (const auto first = store.get(member_key(0))) {
        check_like_first(Member::from_text(*first), me);
        store.set(arrived_key(me.rank), "");
        store.add("arrived", 1);
        has_compared = true;
      }
    }
    // Before a look at failures: what all ranks find out next, each is to report for itself.
    if (has_compared && store.add("arrived", 0) >= launch.world_size) break;
    if (store.has({"failure"})) {
      const FailureNote note = FailureNote::from_text(store.get("failure").value_or(""));
      acknowledge_failure(store, launch);
      exit_now(note.code);
    }
    if (Clock::now() > deadline) throw_missing(store, launch, timeout);
    std::this_thread::sleep_for(pause);
  }
  std::vector<Member> members;
  for (int rank = 0; rank < launch.world_size; ++rank) {
    members.push_back(Member::from_text(store.get(member_key(rank)).value_or("")));
  }
  return members;
}

void set_joining_store(std::shared_ptr<KeyStore> store) {
  const std::lock_guard lock(joining_mutex);
  joining = std::move(store);
}

std::shared_ptr<KeyStore> joining_store() {
  const std::lock_guard lock(joining_mutex);
  return joining;
}

void keep_from_termination() { std::signal(SIGTERM, SIG_IGN); }

void acknowledge_failure(KeyStore& store, const Launch& launch) {
  const auto wait_for = [](auto&& is_so) {
    const auto deadline = Clock::now() + std::chrono::seconds(2);
    while (!is_so() && Clock::now() < deadline) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  const auto note = store.get("failure");
  if (note && FailureNote::from_text(*note).rank == launch.rank) {
    store.set("told", "");
  } else if (note) {
    wait_for([&] { return store.has({"told"}); });
  }
  store.add("acknowledged", 1);
  if (hosts_store(launch)) wait_for([&] { return store.add("acknowledged", 0) >= launch.world_size; });
}

void exit_now(ExitCode code) {
  // Another thread may hold a stream for ever (a reader that has stopped): then its lines are lost, not this process.
  for (std::FILE* stream : {stdout, stderr}) {
    if (ftrylockfile(stream) != 0) continue;
    fflush_unlocked(stream);
    funlockfile(stream);
  }
  std::_Exit(static_cast<int>(code));
}

}  // namespace dfm::comm
