#include "comm/member.h"

#include <dlfcn.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <sstream>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/hash.h"

namespace dfm::comm {
namespace {

// Tests set DFM_HOST_NAME to make processes of one machine look like those of several.
std::string host_name() {
  if (const char* name = std::getenv("DFM_HOST_NAME"); name != nullptr && *name != '\0') return name;
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

std::string realm_of(const std::string& host) {
  std::array<char, 64> name_space{};
  if (readlink("/proc/self/ns/pid", name_space.data(), name_space.size() - 1) < 0) name_space[0] = '\0';
  std::string boot;
  try {
    boot = read_text_file("/proc/sys/kernel/random/boot_id");
  } catch (const Error&) {
    boot = "unknown";
  }
  return fmt::format("{} {} {}", host, boot.substr(0, boot.find('\n')), name_space.data());
}

std::string describe_binary() {
  try {
    const MappedFile program("/proc/self/exe");
    return fmt::format("dfm {}, {} bytes, checksum {:08x}", DFM_VERSION, program.bytes().size(),
                       crc32c(program.bytes()));
  } catch (const Error&) {
    return fmt::format("dfm {}", DFM_VERSION);
  }
}

// Not its index: each rank may see another GPU as number 0.
std::string gpu_id(int index) {
  struct Uuid {
    std::array<unsigned char, 16> bytes;
  };
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (driver != nullptr) {
    using GetUuid = int (*)(Uuid*, int);
    void* function = dlsym(driver, "cuDeviceGetUuid_v2");
    if (function == nullptr) function = dlsym(driver, "cuDeviceGetUuid");
    Uuid uuid{};
    if (function != nullptr && reinterpret_cast<GetUuid>(function)(&uuid, index) == 0) {
      return fmt::format("cuda {:02x}", fmt::join(uuid.bytes, ""));
    }
  }
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return fmt::format("cuda {} of {}", index, visible == nullptr ? "all" : visible);
}

}  // namespace

std::string Member::to_text() const {
  return fmt::format("{}\n{}\n{}\n{}\n{}\n{}\n{}\n", rank, world_size, pid, host, realm, binary, device);
}

Member Member::from_text(const std::string& text) {
  Member member;
  std::istringstream stream(text);
  const auto number = [&](int& value) {
    std::string line;
    if (!std::getline(stream, line) ||
        std::from_chars(line.data(), line.data() + line.size(), value).ec != std::errc()) {
      throw CommError("what a rank says of itself: got '{}', want a number (another version of dfm?)", line);
    }
  };
  number(member.rank);
  number(member.world_size);
  number(member.pid);
  for (std::string* line : {&member.host, &member.realm, &member.binary, &member.device}) std::getline(stream, *line);
  return member;
}

Member this_member(const Launch& launch, const at::Device& device) {
  Member member;
  member.rank = launch.rank;
  member.world_size = launch.world_size;
  member.pid = getpid();
  member.host = host_name();
  member.realm = realm_of(member.host);
  member.binary = describe_binary();
  member.device = device.is_cuda() ? gpu_id(device.has_index() ? device.index() : 0) : "cpu";
  return member;
}

}  // namespace dfm::comm
