// Ranks that meet, fail, die and hang: real processes. Each test is a launch of a few ranks, and looks at what a user
// sees: one line for the job, all ranks ended in time, the right exit code.
#include "dfm/comm/world.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "comm/rendezvous.h"
#include "dfm/comm/failure.h"
#include "support/ranks.h"
#include "support/temp_folder.h"

namespace dfm::test {
namespace {

using Clock = std::chrono::steady_clock;
using comm::Launch;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// As dfm's main(): the error of one rank, or of all, becomes one line.
int report(const Error& error) {
  const Launch launch = comm::read_launch();
  const comm::Claim claim = comm::claim_failure(launch, error.code(), error.what());
  if (claim.is_first) fmt::print(stderr, "dfm test: error: {}{}\n", claim.label, error.what());
  comm::end_failed(launch, claim.cause);
}

template <typename Body>
int reported(Body&& body) {
  try {
    body();
    return 0;
  } catch (const Error& error) {
    return report(error);
  }
}

std::shared_ptr<comm::World> join(double timeout_seconds) {
  return comm::World::join(comm::read_launch(),
                           {.command = "test", .timeout = std::chrono::duration<double>(timeout_seconds)});
}

[[noreturn]] void hang() {
  while (true) std::this_thread::sleep_for(std::chrono::seconds(1));
}

// The lines of all ranks that are errors of dfm's.
std::vector<std::string> error_lines(const std::vector<RankResult>& results) {
  std::vector<std::string> lines;
  for (const RankResult& result : results) {
    std::istringstream stream(result.output);
    for (std::string line; std::getline(stream, line);) {
      if (line.find("error: ") != std::string::npos) lines.push_back(line);
    }
  }
  return lines;
}

std::string all_output(const std::vector<RankResult>& results) {
  std::string text;
  for (std::size_t i = 0; i < results.size(); ++i) {
    text += fmt::format("--- rank {}, exit code {}\n{}", i, results[i].exit_code, results[i].output);
  }
  return text;
}

// One line for the whole job, with this in it, and nothing else on any rank.
void expect_one_line(const std::vector<RankResult>& results, const std::string& start, const std::string& part = "") {
  const auto lines = error_lines(results);
  ASSERT_EQ(lines.size(), 1u) << all_output(results);
  EXPECT_EQ(lines[0].substr(0, start.size()), start);
  EXPECT_NE(lines[0].find(part), std::string::npos) << lines[0];
  std::size_t others = 0;
  for (const RankResult& result : results) others += result.output.size();
  EXPECT_EQ(others, lines[0].size() + 1) << all_output(results);
}

int free_port() {
  const int descriptor = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  EXPECT_EQ(bind(descriptor, reinterpret_cast<sockaddr*>(&address), size), 0);
  getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size);
  close(descriptor);
  return ntohs(address.sin_port);
}

// As under mpirun: no agent, so rank 0 opens the store.
std::map<std::string, std::string> without_agent() {
  return {{"TORCHELASTIC_USE_AGENT_STORE", "False"}, {"MASTER_PORT", std::to_string(free_port())}};
}

// Sends `signal` to `rank` once `file` is there, and notes when.
struct Attack {
  std::filesystem::path file;
  int rank = 1;
  Clock::time_point at{};
  void operator()(const std::map<int, int>& processes) {
    if (at != Clock::time_point{} || !std::filesystem::exists(file) || processes.count(rank) == 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(2000));  // its state has been told
    kill(processes.at(rank), SIGKILL);
    at = Clock::now();
  }
};

RANK_CASE(meets) {
  const int rank = world.rank(), size = world.size();
  EXPECT_EQ(comm::World::current(), &world);
  EXPECT_EQ(world.backend(), comm::Backend::kShm);
  for (int i = 0; i < 3; ++i) {
    const auto texts = world.gather_text(fmt::format("{} of {}", rank, i));
    ASSERT_EQ(texts.size(), static_cast<std::size_t>(size));
    for (int other = 0; other < size; ++other) {
      EXPECT_EQ(texts[static_cast<std::size_t>(other)], fmt::format("{} of {}", other, i));
    }
  }
  world.gather_text(rank == 0 ? std::string("\0binary\n", 8) : "");
  world.require_same("the configuration", "a: 1\nb: 2\n");
  world.all()->barrier();
  EXPECT_EQ(world.all()->size(), size);
  EXPECT_TRUE(world.group("own", {rank})->is_alone());
  const int partner = rank ^ 1;
  if (partner < size) world.group("pair", {std::min(rank, partner), std::max(rank, partner)})->barrier();
  EXPECT_THROW(world.group("not mine", {(rank + 1) % size}), Error);
  // Ranks leave at different times, rank 0 first.
  std::this_thread::sleep_for(std::chrono::milliseconds(100 * rank));
}

TEST(World, RanksMeetThroughAnAgentsStore) { run_ranks(3, "meets"); }

TEST(World, RanksMeetThroughTheStoreOfRankZero) {
  RankOptions options;
  options.environment = without_agent();
  run_ranks(3, "meets", {}, options);
}

TEST(World, OfOneHasNoCost) {
  const auto world = comm::World::join({}, {});
  EXPECT_EQ(world->size(), 1);
  EXPECT_EQ(world->gather_text("x"), std::vector<std::string>{"x"});
  EXPECT_TRUE(world->all()->is_alone());
  world->require_same("it", "x");
  world->leave();
  EXPECT_EQ(comm::World::current(), nullptr);
}

RAW_RANK_CASE(joins) {
  return reported([&] { join(std::stod(args.at(0)))->leave(); });
}

TEST(World, NamesMissingRanksAfterTheTimeout) {
  RankOptions options;
  options.environment["WORLD_SIZE"] = "4";
  const auto results = launch_ranks(2, "joins", {"3"}, options);
  for (const RankResult& result : results) EXPECT_EQ(result.exit_code, 5);
  expect_one_line(results, "dfm test: error: ranks 2, 3: not here after 3 s, want all 4 ranks");
}

RAW_RANK_CASE(joins_a_larger_world) {
  if (comm::read_launch().rank == 1) setenv("WORLD_SIZE", "5", 1);
  return reported([&] { join(20); });
}

TEST(World, RefusesARankOfAWorldOfAnotherSize) {
  const auto results = launch_ranks(2, "joins_a_larger_world");
  for (const RankResult& result : results) EXPECT_EQ(result.exit_code, 5);
  expect_one_line(results, "dfm test: error: rank 1 on host ", "got a world of 5 ranks, want 2 as rank 0");
}

TEST(World, RefusesAnotherProgram) {
  const comm::AgentStore agent;
  Launch launch;
  launch.world_size = 2;
  launch.uses_agent_store = true;
  launch.master_port = agent.port();
  comm::KeyStore store(launch, comm::KeyStore::Role::kClient, std::chrono::seconds(5));
  comm::Member first = comm::this_member(launch, at::kCPU), other = first;
  store.set("member/0", first.to_text());
  launch.rank = other.rank = 1;
  other.binary = "dfm 0.0.9, 17 bytes, checksum 00000001";
  try {
    comm::meet(store, launch, other, std::chrono::seconds(5));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kComm);
    EXPECT_NE(std::string(error.what())
                  .find("got another program (dfm 0.0.9, 17 bytes, checksum 00000001), want that "
                        "of rank 0 on host " +
                        first.host + " (" + first.binary + ")"),
              std::string::npos)
        << error.what();
  }
}

TEST(World, RefusesASecondProcessOfOneRank) {
  RankOptions options;
  options.environment["RANK"] = "0";
  options.environment["WORLD_SIZE"] = "3";
  const auto results = launch_ranks(2, "joins", {"20"}, options);
  for (const RankResult& result : results) EXPECT_EQ(result.exit_code, 5);
  expect_one_line(results, "dfm test: error: rank 0: got two processes with this rank at 127.0.0.1:");
}

TEST(World, SaysThatThePortIsInUse) {
  const comm::AgentStore other_job;
  RankOptions options;
  options.environment = without_agent();
  options.environment["MASTER_PORT"] = std::to_string(other_job.port());
  options.environment["TORCHELASTIC_RUN_ID"] = "another";
  const auto results = launch_ranks(2, "joins", {"20"}, options);
  for (const RankResult& result : results) EXPECT_EQ(result.exit_code, 5);
  expect_one_line(results, fmt::format("dfm test: error: port {} of 127.0.0.1: got a port in use", other_job.port()));
}

RAW_RANK_CASE(differs) {
  return reported([&] {
    const auto world = join(20);
    world->require_same("the configuration", world->rank() == 1 ? "model:\n  width: 5\nx" : "model:\n  width: 4\nx");
  });
}

TEST(World, RequiresTheSameOfAllRanks) {
  const auto results = launch_ranks(3, "differs");
  for (const RankResult& result : results) EXPECT_EQ(result.exit_code, 5);
  expect_one_line(results,
                  "dfm test: error: the configuration: got 'width: 5' on rank 1, want 'width: 4' as on rank 0; hint: ");
}

RAW_RANK_CASE(fails_early) {
  // Rank 1 finds the mistake later, rank 2 not at all.
  const int rank = comm::read_launch().rank;
  std::this_thread::sleep_for(std::chrono::milliseconds(rank * 300));
  return reported([&] {
    if (rank < 2) throw ConfigError("model.num_layers: got 0, want a value > 0");
    join(20);
  });
}

TEST(World, PrintsAMistakeOfAllRanksOnceBeforeTheyMeet) {
  for (const bool has_agent : {true, false}) {
    RankOptions options;
    if (!has_agent) options.environment = without_agent();
    const auto start = Clock::now();
    const auto results = launch_ranks(3, "fails_early", {}, options);
    for (const RankResult& result : results) EXPECT_EQ(result.exit_code, 2);
    expect_one_line(results, "dfm test: error: model.num_layers: got 0, want a value > 0");
    EXPECT_LT(seconds_since(start), 12);
  }
}

// Rank 2 fails while rank 0 waits for it, rank 1 computes and rank 3 is in leave().
RAW_RANK_CASE(fails) {
  return reported([&] {
    const auto world = join(60);
    const auto all = world->all();
    all->barrier();
    if (world->rank() == 2) throw DataError("shard.tar: got a cut file");
    if (world->rank() == 3) world->leave();
    if (world->rank() == 0) all->barrier();
    for (std::atomic<std::uint64_t> i = 0;; ++i) {
    }
  });
}

TEST(World, EndsOnAllRanksWithTheFirstFailure) {
  for (const bool has_agent : {true, false}) {
    RankOptions options;
    if (!has_agent) options.environment = without_agent();
    const auto results = launch_ranks(4, "fails", {}, options);
    for (const RankResult& result : results) EXPECT_EQ(result.exit_code, 3);
    expect_one_line(results, "dfm test: error: rank 2: shard.tar: got a cut file");
  }
}

RAW_RANK_CASE(is_killed) {
  return reported([&] {
    const auto world = join(60);
    const auto all = world->all();
    all->barrier();
    world->set_place("iteration 7, backward");
    if (world->rank() == 0) std::ofstream(args.at(0)) << "ready";
    if (std::to_string(world->rank()) == args.at(1)) hang();
    all->barrier();
  });
}

void expect_death_is_noticed(int victim, bool has_agent) {
  const TempFolder folder;
  RankOptions options;
  if (!has_agent) options.environment = without_agent();
  Attack attack{folder / "ready", victim};
  options.meanwhile = std::ref(attack);
  const auto results = launch_ranks(3, "is_killed", {attack.file.string(), std::to_string(victim)}, options);
  EXPECT_LT(seconds_since(attack.at), 10) << all_output(results);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(results[static_cast<std::size_t>(rank)].exit_code, rank == victim ? 128 + SIGKILL : 5);
  }
  expect_one_line(results, fmt::format("dfm test: error: rank {} (pid ", victim),
                  "died without a word, last at iteration 7, backward; hint: ");
}

TEST(World, NoticesADeadRank) { expect_death_is_noticed(1, true); }
TEST(World, NoticesTheDeathOfTheRankThatHasTheStore) { expect_death_is_noticed(0, false); }

RAW_RANK_CASE(is_killed_far_away) {
  const Launch launch = comm::read_launch();
  setenv("DFM_HOST_NAME", fmt::format("host{}", launch.rank).c_str(), 1);
  return reported([&] {
    const auto world = join(60);
    EXPECT_THROW(world->all(), ConfigError);  // shared memory of two hosts
    world->set_place("iteration 7, backward");
    world->gather_text("here");
    if (world->rank() == 0) std::ofstream(args.at(0)) << "ready";
    hang();
  });
}

TEST(World, NoticesADeadRankOfAnotherHost) {
  const TempFolder folder;
  RankOptions options;
  Attack attack{folder / "ready", 1};
  options.meanwhile = std::ref(attack);
  const auto results = launch_ranks(3, "is_killed_far_away", {attack.file.string()}, options);
  EXPECT_LT(seconds_since(attack.at), 13) << all_output(results);  // 8 s of silence, and a loaded machine
  EXPECT_EQ(results[0].exit_code, 5);
  EXPECT_EQ(results[2].exit_code, 5);
  expect_one_line(results, "dfm test: error: rank 1 (pid ",
                  "on host host1): nothing heard for 8 s, last at iteration 7, backward; hint: ");
}

RAW_RANK_CASE(stops) {
  return reported([&] {
    const auto world = join(4);
    const auto all = world->all();
    world->set_place("iteration 3, backward");
    all->barrier();
    if (world->rank() == 1) {
      world->set_place("iteration 4, reading data");
      std::this_thread::sleep_for(std::chrono::milliseconds(1500));
      raise(SIGSTOP);
    }
    all->barrier();
  });
}

void expect_stop_is_reported(bool has_agent) {
  RankOptions options;
  if (!has_agent) options.environment = without_agent();
  options.meanwhile = [](const std::map<int, int>& processes) {
    if (processes.size() == 1 && processes.count(1) > 0) kill(processes.at(1), SIGKILL);
  };
  const auto start = Clock::now();
  const auto results = launch_ranks(3, "stops", {}, options);
  EXPECT_LT(seconds_since(start), 20);
  EXPECT_EQ(results[0].exit_code, 5);
  EXPECT_EQ(results[2].exit_code, 5);
  expect_one_line(results, "dfm test: error: barrier number ",
                  " of group world (ranks 0, 1, 2): waited 4 s for rank 1, which does not respond and was last at "
                  "operation ");
  EXPECT_NE(error_lines(results)[0].find("(iteration 4, reading data)"), std::string::npos) << error_lines(results)[0];
}

TEST(World, ReportsAStoppedRankAtTheTimeout) { expect_stop_is_reported(true); }

// The rank with the store stops: the others cannot ask any more, and still end.
RAW_RANK_CASE(stops_with_the_store) {
  return reported([&] {
    const auto world = join(3);
    const auto all = world->all();
    all->barrier();
    if (world->rank() == 0) raise(SIGSTOP);
    all->barrier();
  });
}

TEST(World, EndsWithoutTheStoreToo) {
  RankOptions options;
  options.environment = without_agent();
  options.meanwhile = [](const std::map<int, int>& processes) {
    if (processes.size() == 1 && processes.count(0) > 0) kill(processes.at(0), SIGKILL);
  };
  const auto results = launch_ranks(3, "stops_with_the_store", {}, options);
  EXPECT_EQ(results[1].exit_code, 5);
  EXPECT_EQ(results[2].exit_code, 5);
  expect_one_line(results, "dfm test: error: barrier number ", "rank 0");
}

}  // namespace
}  // namespace dfm::test
