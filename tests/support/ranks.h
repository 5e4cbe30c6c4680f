#pragma once
// Tests over ranks: real processes, as a launcher would start them. Targets with `dfm_test(... RANKS)` link this.
//
//   RANK_CASE(sums) {                       // runs in each rank; `world` has been joined, `args` come from the test
//     const comm::GroupPtr all = world.all();
//     ...
//     EXPECT_EQ(...);                       // a failure in any rank fails the test, with that rank's output
//   }
//   TEST(Sums, AreTheSameOnAllRanks) { run_ranks(4, "sums", {"float32"}); }
//
// Every rank has one thread for operations. A launch of 4 costs about 2 s of processor time before anything happens, so
// let one case check much.
#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "dfm/comm/world.h"

namespace dfm::test {

using RankArgs = std::vector<std::string>;

struct RankOptions {
  std::chrono::seconds deadline{120};              // then all are killed, and the test fails
  std::map<std::string, std::string> environment;  // beside what a launcher sets
  // While the ranks run, now and then: their process ids (of those that live, by rank), e.g. to kill one.
  std::function<void(const std::map<int, int>& processes)> meanwhile;
};

struct RankResult {
  int exit_code = -1;  // 128 + signal for one that a signal ended
  std::string output;  // of both streams
};

// Runs the case in `num_ranks` processes; the results by rank. A deadline that passes is a test failure.
std::vector<RankResult> launch_ranks(int num_ranks, const std::string& name, const RankArgs& args = {},
                                     const RankOptions& options = {});
// The same, and every rank must end with 0.
void run_ranks(int num_ranks, const std::string& name, const RankArgs& args = {}, const RankOptions& options = {});

struct RankCase {
  std::function<void(comm::World& world, const RankArgs& args)> joined;  // this one,
  std::function<int(const RankArgs& args)> raw;                          // or this one, whose result is the exit code
  std::function<comm::WorldOptions(const RankArgs& args)> options;       // of `joined`; CPU if there is none
};
struct RegisterRankCase {
  RegisterRankCase(const std::string& name, RankCase body);
};

}  // namespace dfm::test

#define RANK_CASE(name) RANK_CASE_WITH(name, nullptr)

// A case that joins with the WorldOptions that `options_of(args)` gives.
#define RANK_CASE_WITH(name, options_of)                                                      \
  static void rank_case_##name(::dfm::comm::World& world, const ::dfm::test::RankArgs& args); \
  static const ::dfm::test::RegisterRankCase register_rank_case_##name(                       \
      #name, {.joined = rank_case_##name, .options = options_of});                            \
  static void rank_case_##name([[maybe_unused]] ::dfm::comm::World& world,                    \
                               [[maybe_unused]] const ::dfm::test::RankArgs& args)

// A case that does everything itself, joining included, and returns the exit code.
#define RAW_RANK_CASE(name)                                                                               \
  static int rank_case_##name(const ::dfm::test::RankArgs& args);                                         \
  static const ::dfm::test::RegisterRankCase register_rank_case_##name(#name, {.raw = rank_case_##name}); \
  static int rank_case_##name([[maybe_unused]] const ::dfm::test::RankArgs& args)
