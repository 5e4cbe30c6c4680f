#pragma once
// The tars of a data set, read without its index: whatever parts they hold.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "inspect/facts.h"

namespace dfm::inspect {

struct TarSample {
  std::string key;
  std::filesystem::path shard;
  struct Part {
    std::string name;  // "pth"
    std::uint64_t offset = 0, size = 0;
  };
  std::vector<Part> parts;
  [[nodiscard]] const Part* find(const std::string& part) const;
  [[nodiscard]] bool is_prepared() const;  // has json, pth and pickle: what `dfm train` takes
  [[nodiscard]] std::string read(const Part& part) const;
  [[nodiscard]] std::string name_of(const Part& part) const;  // for messages
};

// Tars in the folder and below it, hidden folders left out, sorted.
std::vector<std::filesystem::path> list_tars(const std::filesystem::path& folder);
// Headers only. A damaged tar is a DataError.
std::vector<TarSample> list_samples(const std::filesystem::path& tar);
std::vector<TarSample> list_samples(const std::vector<std::filesystem::path>& tars);

// The latent [C, T, H, W] and the text [L, E] as stored; nothing where there is no such part. DataError: damage, other
// shapes.
struct StoredSample {
  at::Tensor latent_CTHW, text_LE;
  std::int64_t text_length = 0;  // rows up to the last that is not zero
  double fps = 0;
  std::string caption;
  Facts json;
};
StoredSample read_stored(const TarSample& sample);

// Everything about one sample.
Facts inspect_sample(const TarSample& sample);

}  // namespace dfm::inspect
