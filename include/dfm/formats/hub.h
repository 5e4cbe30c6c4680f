#pragma once
// The Hugging Face hub: its cache tree, which huggingface_hub reads and writes too (0.36 and 1.x), and downloads into
// it. Environment as the Python client reads it: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE ...
// docs/formats.md, "Hugging Face hub".
//
//   const Hub hub(HubSettings::from_environment());
//   const fs::path file = hub.fetch({.id = "google-t5/t5-small"}, "config.json");
//
// A file is downloaded once for all processes that share the cache (a lock per file): the others wait and find it.
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace dfm::formats {

struct HubSettings {
  std::filesystem::path cache;  // holds models--org--name/
  std::string endpoint = "https://huggingface.co";
  std::string token;  // never printed, never sent to another host than the endpoint's
  bool offline = false;
  double timeout_seconds = 10;           // without a byte
  double metadata_timeout_seconds = 10;  // the same, for requests that carry no file
  int num_tries = 5;                     // of a request; counted anew when bytes came
  double retry_seconds = 1;              // before the second try; doubles, to a minute at most
  bool show_progress = true;
  bool use_symlinks = true;  // false, or where the file system has none: snapshots hold the files themselves
  // `cache` not empty replaces the cache folder, as `cache_dir` does in Python.
  static HubSettings from_environment(const std::filesystem::path& cache = {});
};

struct HubRepo {
  enum class Kind { kModel, kDataset };
  Kind kind = Kind::kModel;
  std::string id;  // org/name
  std::string revision = "main";
};

// Whether text has the form of a repository's id: `name` or `org/name` of letters, digits, `-_.`, with the client's
// rules: no `--`, no `..`, no `.git` at the end. A folder's name may have this form too: look for the folder first.
bool is_hub_id(const std::string& text);

class Hub {
 public:
  explicit Hub(HubSettings settings);
  [[nodiscard]] const HubSettings& settings() const { return settings_; }

  // The path of the file in the cache, downloaded if it is not there. Offline, or when the hub cannot be reached or
  // refuses: what the cache has. A revision that is a commit (40 hex digits) and cached needs no request. Errors name
  // repository and file, what was got (401, 403, 404, ...) and what to do: a DataError; a full disk is a ResourceError;
  // an id, revision or file name that cannot be one is a ConfigError. Thread safe.
  [[nodiscard]] std::filesystem::path fetch(const HubRepo& repo, const std::string& file) const;
  // Nothing where the repository has no such file (remembered in .no_exist), or, offline, where the cached snapshot
  // lacks it; other failures are thrown: an answer that was lost does not make a file absent.
  [[nodiscard]] std::optional<std::filesystem::path> fetch_if_there(const HubRepo& repo, const std::string& file) const;
  // The files of the repository, sorted; offline, or when the hub cannot be asked: those of the cached snapshot, which
  // may be fewer.
  [[nodiscard]] std::vector<std::string> list(const HubRepo& repo) const;
  // Whether answers came, or will come, from the cache alone.
  [[nodiscard]] bool answers_from_cache() const { return settings_.offline || *is_unreachable_; }

 private:
  HubSettings settings_;
  std::shared_ptr<std::atomic<bool>> is_unreachable_;  // found so: what the cache has needs no further waiting
};

// Bytes of an http(s) URL, e.g. a picture that a data set only links to. DataError: any failure, more than `max_bytes`,
// or settings.offline. Retries like a download; follows redirects; no token is sent. Thread safe.
std::string http_get(const std::string& url, const HubSettings& settings, std::uint64_t max_bytes);

}  // namespace dfm::formats
