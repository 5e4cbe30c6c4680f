#pragma once
// One blob: downloaded beside its name, continued where an earlier try ended, checked, renamed.
#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "dfm/base/file.h"
#include "dfm/formats/hub.h"
#include "formats/http.h"

struct AVSHA;

namespace dfm::formats {

// What the hub says of a file.
struct HubMetadata {
  std::string commit, etag;
  std::optional<std::uint64_t> size;
  std::string location;     // where the bytes are: may be a signed address of another host, good for a while
  std::string resolve_url;  // the file at this commit, on the hub itself
};

// SHA-256 or SHA-1 of bytes that come in pieces; lower-case hex.
class Sha {
 public:
  explicit Sha(int bits);
  ~Sha();
  Sha(const Sha&) = delete;
  Sha& operator=(const Sha&) = delete;
  void update(std::span<const std::byte> bytes);
  std::string hex();  // once

 private:
  AVSHA* context_;
  int bits_;
};

// A git object's name: sha1 of "blob <size>\0" and the contents.
std::string git_blob_sha1(std::span<const std::byte> contents);

// `blobs/<etag>.incomplete`, the name that huggingface_hub 0.36 uses: either continues what the other began.
class PartialFile {
 public:
  PartialFile(std::filesystem::path path, const std::string& etag);
  [[nodiscard]] std::uint64_t size() const { return size_; }
  void write(std::span<const std::byte> bytes);
  void restart();  // from nothing
  // "" if the bytes are those of the etag (or it is no hash), else which hash was got.
  [[nodiscard]] std::string mismatch();
  void sync_and_rename(const std::filesystem::path& to);

 private:
  std::filesystem::path path_;
  std::string etag_;
  File file_;
  std::uint64_t size_ = 0;
  std::unique_ptr<Sha> sha256_;  // where the etag is one
};

// Leaves blobs/<etag> behind, whole. The caller holds the blob's lock. `what` names the file in messages.
void download_blob(const HubSettings& settings, const HubMetadata& metadata, const std::filesystem::path& blob,
                   const std::string& what, const HubRepo& repo);

}  // namespace dfm::formats
