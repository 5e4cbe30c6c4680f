#include "dfm/ops/device.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>
#include <link.h>
#include <sched.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <mutex>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "ops/cuda_kernels.h"

namespace dfm::ops {
namespace {

namespace fs = std::filesystem;

const CudaKernels* loaded_kernels = nullptr;

// The driver's own entry points: what is there before anything of CUDA is loaded.
struct Driver {
  using Init = int (*)(unsigned);
  using Count = int (*)(int*);
  using Name = int (*)(char*, int, int);
  int num_devices = 0;
  std::string problem;
  Name device_name = nullptr;
};

Driver open_driver() {
  Driver driver;
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    driver.problem = "no NVIDIA driver (libcuda.so.1)";
    return driver;
  }
  const auto init = reinterpret_cast<Driver::Init>(::dlsym(library, "cuInit"));
  const auto count = reinterpret_cast<Driver::Count>(::dlsym(library, "cuDeviceGetCount"));
  driver.device_name = reinterpret_cast<Driver::Name>(::dlsym(library, "cuDeviceGetName"));
  if (init == nullptr || count == nullptr || driver.device_name == nullptr) {
    driver.problem = "libcuda.so.1 is not an NVIDIA driver";
  } else if (const int status = init(0); status != 0) {
    driver.problem = fmt::format("the NVIDIA driver reports error {}", status);
  } else if (count(&driver.num_devices) != 0 || driver.num_devices == 0) {
    driver.num_devices = 0;
    driver.problem = "the NVIDIA driver sees no GPU";
  }
  return driver;
}

const Driver& driver() {
  static const Driver opened = open_driver();
  return opened;
}

// The folder of the libtorch_cpu that this process runs with: its CUDA half is beside it.
fs::path torch_folder() {
  fs::path folder;
  ::dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* result) {
        const fs::path path = info->dlpi_name;
        if (path.filename() != "libtorch_cpu.so") return 0;
        *static_cast<fs::path*>(result) = path.parent_path();
        return 1;
      },
      &folder);
  return folder;
}

// A problem in words, or "".
std::string load_torch_cuda() {
  const fs::path path = torch_folder() / "libtorch_cuda.so";
  if (::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) return {};
  const char* error = ::dlerror();
  return fmt::format("LibTorch's CUDA half cannot be loaded: {}", error == nullptr ? path.string() : error);
}

std::vector<fs::path> kernel_library_candidates() {
  std::vector<fs::path> candidates;
  std::error_code ignored;
  const fs::path executable = fs::read_symlink("/proc/self/exe", ignored);
  if (!executable.empty()) {
    candidates.push_back(executable.parent_path() / "libdfm_cuda.so");
    for (const char* folder : {"lib", "lib64"}) {
      candidates.push_back(executable.parent_path().parent_path() / folder / "libdfm_cuda.so");
    }
  }
#ifdef DFM_CUDA_LIBRARY
  candidates.emplace_back(DFM_CUDA_LIBRARY);
#endif
  return candidates;
}

// After load_torch_cuda(): the kernel library is linked against what that has brought into the process.
void load_kernels() {
  for (const fs::path& path : kernel_library_candidates()) {
    std::error_code ignored;
    if (!fs::exists(path, ignored)) continue;
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* error = ::dlerror();
      log::warning("ops", "{} cannot be loaded, ATen's operations are used: {}", path.string(),
                   error == nullptr ? "unknown error" : error);
      continue;
    }
    const auto get = reinterpret_cast<const CudaKernels* (*)()>(::dlsym(library, "dfm_cuda_kernels"));
    const CudaKernels* kernels = get == nullptr ? nullptr : get();
    if (kernels == nullptr || kernels->version != CudaKernels::kVersion) {
      log::warning("ops", "{} is of another build of dfm, ATen's operations are used", path.string());
      continue;
    }
    loaded_kernels = kernels;
    return;
  }
  log::info("ops", "libdfm_cuda.so is not there: ATen's operations do its work, more slowly");
}

// A problem in words, or "". The result of the first call stays.
const std::string& load_cuda() {
  static const std::string problem = [] {
    if (!driver().problem.empty()) return driver().problem;
    if (std::string failed = load_torch_cuda(); !failed.empty()) return failed;
    if (!at::hasCUDA()) return std::string("LibTorch finds no usable GPU: is the driver new enough for CUDA 13?");
    load_kernels();
    return std::string();
  }();
  return problem;
}

}  // namespace

const CudaKernels* cuda_kernels() { return loaded_kernels; }

bool has_cuda_kernels() { return loaded_kernels != nullptr; }

at::Device select_device(const std::string& request, int local_rank) {
  if (request != "auto" && request != "cpu" && request != "cuda") {
    throw ConfigError("--device: got {}, want auto, cpu or cuda", request);
  }
  if (request == "cpu") return at::kCPU;
  if (const std::string& problem = load_cuda(); !problem.empty()) {
    if (request == "cuda") {
      throw ConfigError("--device: got cuda, want a usable GPU ({}); hint: --device cpu", problem);
    }
    if (driver().num_devices > 0) log::warning("ops", "there is a GPU, but the CPU is used: {}", problem);
    return at::kCPU;
  }
  at::globalContext().lazyInitDevice(at::kCUDA);
  const auto* guard = c10::impl::getDeviceGuardImpl(at::kCUDA);
  const int num_devices = guard->deviceCount();
  const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(local_rank % num_devices));
  guard->setDevice(device);
  return device;
}

std::string describe_device(const at::Device& device) {
  if (!device.is_cuda()) {
    const int threads = at::get_num_threads();
    return fmt::format("CPU, {} thread{}", threads, threads == 1 ? "" : "s");
  }
  std::array<char, 128> name{};
  driver().device_name(name.data(), static_cast<int>(name.size()), device.index());
  return fmt::format("{}, {}", name.data(), has_cuda_kernels() ? "dfm's kernels" : "ATen's operations only");
}

void set_num_threads(int threads) {
  if (threads <= 0) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    threads = ::sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
  }
  at::set_num_threads(threads);
}

}  // namespace dfm::ops
