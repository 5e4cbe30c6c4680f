#include "text/shared_flag.h"

#include <cstddef>

struct alignas(64) SharedFlag {
  std::byte bytes[256];
};
extern "C" {
__attribute__((visibility("default"))) SharedFlag FLAGS_minloglevel;
}

namespace dfm::text {

const void* shared_log_level() { return &FLAGS_minloglevel; }

}  // namespace dfm::text
