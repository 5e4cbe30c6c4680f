#include "dfm/comm/launch.h"

#include <gtest/gtest.h>

#include <map>

#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

Launch launch_of(const std::map<std::string, std::string>& environment) {
  return read_launch([&](const std::string& name) -> std::optional<std::string> {
    const auto found = environment.find(name);
    return found == environment.end() ? std::nullopt : std::optional<std::string>(found->second);
  });
}

std::string error_of(const std::map<std::string, std::string>& environment) {
  try {
    launch_of(environment);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kComm);
    return error.what();
  }
  return "no error";
}

TEST(ReadLaunch, AloneIsRankZeroOfOne) {
  const Launch launch = launch_of({{"PATH", "/bin"}});
  EXPECT_EQ(launch.rank, 0);
  EXPECT_EQ(launch.world_size, 1);
  EXPECT_EQ(launch.local_rank, 0);
  EXPECT_EQ(launch.launcher, "none");
}

TEST(ReadLaunch, ReadsEachLauncher) {
  const std::map<std::string, std::map<std::string, std::string>> environments = {
      {"torchrun", {{"RANK", "5"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}}},
      {"mpirun", {{"OMPI_COMM_WORLD_RANK", "5"}, {"OMPI_COMM_WORLD_SIZE", "8"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}}},
      {"srun", {{"SLURM_PROCID", "5"}, {"SLURM_NTASKS", "8"}, {"SLURM_LOCALID", "1"}, {"SLURM_STEP_ID", "0"}}},
  };
  for (const auto& [launcher, environment] : environments) {
    const Launch launch = launch_of(environment);
    EXPECT_EQ(launch.launcher, launcher);
    EXPECT_EQ(launch.rank, 5);
    EXPECT_EQ(launch.world_size, 8);
    EXPECT_EQ(launch.local_rank, 1);
  }
}

TEST(ReadLaunch, PrefersTorchrunUnderSlurm) {
  const Launch launch = launch_of({{"RANK", "1"},
                                   {"WORLD_SIZE", "2"},
                                   {"LOCAL_RANK", "1"},
                                   {"SLURM_PROCID", "0"},
                                   {"SLURM_NTASKS", "4"},
                                   {"SLURM_STEP_ID", "0"}});
  EXPECT_EQ(launch.launcher, "torchrun");
  EXPECT_EQ(launch.world_size, 2);
}

TEST(ReadLaunch, IsAloneInTheShellOfASlurmBatchJob) {
  EXPECT_EQ(launch_of({{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}}).world_size, 1);
  EXPECT_EQ(launch_of({{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "batch"}}).world_size, 1);
}

TEST(ReadLaunch, NamesTheBadVariable) {
  EXPECT_EQ(error_of({{"RANK", "x"}, {"WORLD_SIZE", "2"}}), "environment variable RANK: got 'x', want an integer >= 0");
  EXPECT_EQ(error_of({{"RANK", "0"}, {"WORLD_SIZE", "0"}}),
            "environment variable WORLD_SIZE: got '0', want an integer >= 1");
  EXPECT_EQ(error_of({{"RANK", "2"}, {"WORLD_SIZE", "2"}}),
            "environment variable RANK: got 2, want less than WORLD_SIZE = 2");
  EXPECT_NE(error_of({{"WORLD_SIZE", "2"}}).find("environment variable RANK: got none beside WORLD_SIZE"),
            std::string::npos);
  EXPECT_NE(error_of({{"RANK", "2"}}).find("environment variable WORLD_SIZE: got none beside RANK"), std::string::npos);
}

}  // namespace
}  // namespace dfm::comm
