#pragma once
// Where tests find the files that are not the project's own. Nothing means that they are not there.
#include <cstdlib>
#include <filesystem>
#include <optional>

namespace dfm::test {

inline std::optional<std::filesystem::path> folder_of(const char* variable, const char* beside_source) {
  if (const char* value = std::getenv(variable); value != nullptr && *value != '\0') return value;
  std::filesystem::path path = std::filesystem::path(DFM_SOURCE_DIR).parent_path() / "shared" / beside_source;
  if (std::filesystem::is_directory(path)) return path;
  return std::nullopt;
}

// Numbers made by the original software: a folder with dfm/ and webdataset/.
inline std::optional<std::filesystem::path> golden_dir() { return folder_of("DFM_GOLDEN_DIR", "golden"); }
// Real media: images/, videos/, t5/spiece.model.
inline std::optional<std::filesystem::path> data_dir() { return folder_of("DFM_DATA_DIR", "data"); }

}  // namespace dfm::test
