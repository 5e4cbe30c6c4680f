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

TEST(ReadLaunch, MeetsWhereTorchrunSays) {
  const Launch launch = launch_of({{"RANK", "5"},
                                   {"WORLD_SIZE", "8"},
                                   {"LOCAL_RANK", "1"},
                                   {"LOCAL_WORLD_SIZE", "4"},
                                   {"MASTER_ADDR", "gpu01"},
                                   {"MASTER_PORT", "1234"},
                                   {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                   {"TORCHELASTIC_RESTART_COUNT", "2"}});
  EXPECT_EQ(launch.local_world_size, 4);
  EXPECT_EQ(launch.master_address, "gpu01");
  EXPECT_EQ(launch.master_port, 1234);
  EXPECT_TRUE(launch.uses_agent_store);
  EXPECT_EQ(launch.restart_count, 2);
}

TEST(ReadLaunch, MeetsAtAPortOfItsOwnUnderMpirun) {
  std::map<std::string, std::string> environment{{"OMPI_COMM_WORLD_RANK", "1"},
                                                 {"OMPI_COMM_WORLD_SIZE", "2"},
                                                 {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                                 {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                                 {"PMIX_NAMESPACE", "12345"}};
  const Launch one = launch_of(environment);
  EXPECT_EQ(one.local_world_size, 2);
  EXPECT_EQ(one.master_address, "127.0.0.1");
  EXPECT_FALSE(one.uses_agent_store);
  EXPECT_GT(one.master_port, 1023);
  environment["PMIX_NAMESPACE"] = "12346";
  EXPECT_NE(launch_of(environment).master_port, one.master_port);
  // The rank at the end of PMIX_ID is no part of the job.
  environment.erase("PMIX_NAMESPACE");
  environment["PMIX_ID"] = "prterun-a@1.0";
  const Launch first = launch_of(environment);
  environment["PMIX_ID"] = "prterun-a@1.1";
  EXPECT_EQ(launch_of(environment).master_port, first.master_port);
  environment["MASTER_PORT"] = "77";
  EXPECT_EQ(launch_of(environment).master_port, 77);
}

TEST(ReadLaunch, NeedsAnAddressForSeveralHostsOfMpirun) {
  std::map<std::string, std::string> environment{{"OMPI_COMM_WORLD_RANK", "1"},
                                                 {"OMPI_COMM_WORLD_SIZE", "4"},
                                                 {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                                 {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}};
  EXPECT_EQ(error_of(environment),
            "environment variable MASTER_ADDR: got none, want the host of rank 0, since 2 ranks of 4 are on this host "
            "(mpirun); hint: mpirun -x MASTER_ADDR=HOST ...");
  environment["MASTER_ADDR"] = "gpu01";
  EXPECT_EQ(launch_of(environment).master_address, "gpu01");
}

TEST(ReadLaunch, MeetsAtTheFirstHostOfASlurmStep) {
  std::map<std::string, std::string> environment{{"SLURM_PROCID", "6"},
                                                 {"SLURM_NTASKS", "7"},
                                                 {"SLURM_LOCALID", "2"},
                                                 {"SLURM_NODEID", "1"},
                                                 {"SLURM_JOB_ID", "991"},
                                                 {"SLURM_STEP_ID", "0"},
                                                 {"SLURM_STEP_TASKS_PER_NODE", "4,3"},
                                                 {"SLURM_LAUNCH_NODE_IPADDR", "10.0.0.9"}};
  const Launch launch = launch_of(environment);
  EXPECT_EQ(launch.local_world_size, 3);
  EXPECT_EQ(launch.master_address, "10.0.0.9");
  const std::map<std::string, std::string> hosts{{"gpu[03-05,9],login1", "gpu03"},
                                                 {"gpu7", "gpu7"},
                                                 {"rack[1-2]n[04,06]", "rack1n04"},
                                                 {"a-b-c,d", "a-b-c"},
                                                 {"x[12", "x12"},
                                                 {"gpu[1,2]-ib,z", "gpu1-ib"}};
  for (const auto& [list, host] : hosts) {
    environment["SLURM_STEP_NODELIST"] = list;
    EXPECT_EQ(launch_of(environment).master_address, host);
  }
  environment["SLURM_STEP_ID"] = "1";
  EXPECT_NE(launch_of(environment).master_port, launch.master_port);
  environment["SLURM_STEP_TASKS_PER_NODE"] = "2(x2),3";
  EXPECT_EQ(launch_of(environment).local_world_size, 2);
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
