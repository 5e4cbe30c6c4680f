#include "dfm/ops/device.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "support/errors.h"

namespace dfm::ops {
namespace {

TEST(SelectDevice, CpuIsAlwaysThere) {
  EXPECT_TRUE(select_device("cpu", 0).is_cpu());
  EXPECT_NE(describe_device(at::kCPU).find("CPU, "), std::string::npos);
}

TEST(SelectDevice, AutoTakesAGpuWhereCudaWorks) {
  const at::Device device = select_device("auto", 0);
  if (device.is_cuda()) {
    EXPECT_TRUE(select_device("cuda", 0).is_cuda());
  } else {
    EXPECT_DFM_ERROR(ExitCode::kConfig, "--device: got cuda, want a usable GPU", select_device("cuda", 0));
  }
}

TEST(SelectDevice, RefusesOtherNames) {
  EXPECT_DFM_ERROR(ExitCode::kConfig, "--device: got tpu, want auto, cpu or cuda", select_device("tpu", 0));
}

TEST(SetNumThreads, TakesANumberOrAllOfTheAffinity) {
  set_num_threads(3);
  EXPECT_EQ(at::get_num_threads(), 3);
  set_num_threads(0);
  EXPECT_GE(at::get_num_threads(), 1);
}

}  // namespace
}  // namespace dfm::ops
