#pragma once
// The cache tree of one repository, as huggingface_hub lays it out:
//   refs/<revision>                   the commit, without a line end
//   snapshots/<commit>/<file>         a relative link to the blob
//   blobs/<etag>, <etag>.incomplete   whole; what has come so far
//   .no_exist/<commit>/<file>         empty: the commit has no such file
//   ../.locks/<repository>/<etag>.lock   held with flock while a blob is made
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dfm/formats/hub.h"

namespace dfm::formats {

bool is_commit_hash(const std::string& text);  // 40 hex digits in lower case
// Whether `path` names something below the folder that it is appended to: a/b, not ../b, /b, a//b or a/./b.
bool stays_inside(const std::string& path);
// From a header: without W/ and quotes; "" if it cannot be the name of a blob.
std::string normalized_etag(const std::string& header);

class HubCache {
 public:
  HubCache(const HubSettings& settings, const HubRepo& repo);
  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
  [[nodiscard]] std::filesystem::path pointer(const std::string& commit, const std::string& file) const;
  [[nodiscard]] std::filesystem::path blob(const std::string& etag) const { return folder_ / "blobs" / etag; }
  [[nodiscard]] std::filesystem::path lock(const std::string& etag) const { return locks_ / (etag + ".lock"); }

  // The commit that a branch or tag was when it was last asked for; a commit is itself.
  [[nodiscard]] std::optional<std::string> commit_of(const std::string& revision) const;
  [[nodiscard]] bool has_file(const std::string& commit, const std::string& file) const;
  [[nodiscard]] bool knows_absent(const std::string& commit, const std::string& file) const;
  [[nodiscard]] std::vector<std::string> files(const std::string& commit) const;  // sorted; none: no snapshot

  // These do nothing where the cache says so already: it may be one that cannot be written.
  void remember_commit(const std::string& revision, const std::string& commit) const;
  void remember_absent(const std::string& commit, const std::string& file) const;
  // Makes the snapshot's file of a blob; without links a blob that is `new_blob` is moved, another is copied.
  void place(const std::string& etag, const std::string& commit, const std::string& file, bool new_blob) const;

 private:
  [[nodiscard]] std::filesystem::path temporary() const;
  std::filesystem::path folder_, locks_;
  bool use_symlinks_;
};

// Held by one process at a time; waits for it. Goes on without where the file system has no locks.
class HubLock {
 public:
  HubLock(const std::filesystem::path& path, const std::string& what);
  ~HubLock();
  HubLock(const HubLock&) = delete;
  HubLock& operator=(const HubLock&) = delete;

 private:
  int descriptor_ = -1;
};

void make_folders(const std::filesystem::path& path);  // errors name the path; a full disk is a ResourceError
// Like the standard's, but what cannot be looked at is an error.
bool is_there(const std::filesystem::path& path);

}  // namespace dfm::formats
