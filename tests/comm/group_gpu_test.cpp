// Groups of CUDA tensors: shared memory with all ranks on one GPU, NCCL with a GPU for each. Says what it skips.
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <gtest/gtest.h>

#include "comm/group_checks.h"
#include "dfm/ops/device.h"
#include "support/ranks.h"

namespace dfm::comm {
namespace {

int num_gpus() {
  static const int count = [] {
    if (!ops::select_device("auto", 0).is_cuda()) return 0;
    return static_cast<int>(c10::impl::getDeviceGuardImpl(at::kCUDA)->deviceCount());
  }();
  return count;
}

// args: the backend, and whether all ranks share the first GPU.
WorldOptions options_of(const test::RankArgs& args) {
  const bool is_shm = args.at(0) == "shm";
  return {.command = "test",
          .backend = is_shm ? Backend::kShm : Backend::kNccl,
          .device = ops::select_device("cuda", is_shm ? 0 : read_launch().local_rank),
          .timeout = std::chrono::seconds(90)};
}

RANK_CASE_WITH(every_operation_on_gpu, options_of) {
  const bool is_shm = args.at(0) == "shm";
  const GroupPtr all = world.all();
  const at::Device device = ops::select_device("cuda", is_shm ? 0 : world.launch().local_rank);
  test::check_every_operation(*all, {.device = device, .has_ordered_sums = is_shm});
  if (world.size() < 4) return;
  // Two groups a rank, tensor x data.
  const int me = world.rank();
  const GroupPtr tensor = world.group("tensor", {me / 2 * 2, me / 2 * 2 + 1});
  const GroupPtr data = world.group("data", {me % 2, me % 2 + 2});
  for (int round = 0; round < 20; ++round) {
    const at::Tensor x = at::full({200001}, static_cast<float>(me + 1), at::TensorOptions(at::kFloat).device(device));
    tensor->all_reduce(x).wait();
    data->all_reduce(x).wait();
    EXPECT_TRUE(at::equal(x, at::full_like(x, 10)));
  }
}

class GroupGpuTest : public testing::Test {
 protected:
  void need_gpus(int count) {
    if (num_gpus() < count) GTEST_SKIP() << "skipped: " << num_gpus() << " GPUs, " << count << " needed";
  }
};

TEST_F(GroupGpuTest, SharedMemoryCarriesTensorsOfRanksOnOneGpu) {
  need_gpus(1);
  if (IsSkipped()) return;
  test::run_ranks(2, "every_operation_on_gpu", {"shm"}, {.deadline = std::chrono::seconds(240)});
}

TEST_F(GroupGpuTest, NcclCarriesTensorsOfTwoGpus) {
  need_gpus(2);
  if (IsSkipped()) return;
  test::run_ranks(2, "every_operation_on_gpu", {"nccl"}, {.deadline = std::chrono::seconds(240)});
}

TEST_F(GroupGpuTest, NcclCarriesTensorsOfFourGpus) {
  need_gpus(4);
  if (IsSkipped()) return;
  test::run_ranks(4, "every_operation_on_gpu", {"nccl"}, {.deadline = std::chrono::seconds(240)});
}

}  // namespace
}  // namespace dfm::comm
