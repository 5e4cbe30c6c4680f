#include "comm/nccl_loader.h"

#include <dlfcn.h>

#include <filesystem>
#include <vector>

#include "comm/nccl/nccl_library.h"
#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

namespace fs = std::filesystem;

// Where dfm's own libraries may be: beside the executable, in an installed tree, where the build put them.
std::vector<fs::path> candidates() {
  std::vector<fs::path> paths;
  std::error_code ignored;
  const fs::path executable = fs::read_symlink("/proc/self/exe", ignored);
  if (!executable.empty()) {
    paths.push_back(executable.parent_path() / "libdfm_nccl.so");
    for (const char* folder : {"lib", "lib64"}) {
      paths.push_back(executable.parent_path().parent_path() / folder / "libdfm_nccl.so");
    }
  }
#ifdef DFM_NCCL_LIBRARY
  paths.emplace_back(DFM_NCCL_LIBRARY);
#endif
  return paths;
}

const NcclLibrary* load() {
  constexpr const char* kHint = "hint: dist.distributed_backend=shm joins the ranks of one host without it";
  for (const fs::path& path : candidates()) {
    std::error_code ignored;
    if (!fs::exists(path, ignored)) continue;
    void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* error = ::dlerror();
      throw ConfigError("dist.distributed_backend=nccl: {} cannot be loaded: {}; {}", path.string(),
                        error == nullptr ? "unknown error" : error, kHint);
    }
    const auto get = reinterpret_cast<const NcclLibrary* (*)()>(::dlsym(handle, "dfm_nccl_library"));
    const NcclLibrary* library = get == nullptr ? nullptr : get();
    if (library == nullptr || library->version != NcclLibrary::kVersion) {
      throw ConfigError("dist.distributed_backend=nccl: {} is of another build of dfm; {}", path.string(), kHint);
    }
    return library;
  }
  throw ConfigError(
      "dist.distributed_backend=nccl: got no libdfm_nccl.so, want it beside dfm or in its lib folder (dfm was built "
      "without nvcc?); {}",
      kHint);
}

}  // namespace

GroupPtr make_nccl_group(const GroupRequest& request) {
  static const NcclLibrary* library = load();
  return library->make_group(request);
}

}  // namespace dfm::comm
