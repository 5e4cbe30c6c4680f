#include "formats/hub_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/log.h"
#include "formats/http.h"

namespace dfm::formats {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void throw_cache_error(const fs::path& path, const char* what, int error) {
  if (error == ENOSPC || error == EDQUOT)
    throw ResourceError("hub cache: cannot {} {}: {}; hint: free some space, or name another folder with HF_HUB_CACHE",
                        what, path.string(), std::strerror(error));
  throw DataError("hub cache: cannot {} {}: {}; hint: name a folder of your own with HF_HUB_CACHE", what, path.string(),
                  std::strerror(error));
}

bool is_lower_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }

}  // namespace

bool is_commit_hash(const std::string& text) {
  return text.size() == 40 && std::all_of(text.begin(), text.end(), is_lower_hex);
}

bool stays_inside(const std::string& path) {
  constexpr std::size_t kMaxBytes = 1024;
  if (path.empty() || path.size() > kMaxBytes) return false;
  for (std::size_t start = 0; start <= path.size();) {
    const std::size_t end = std::min(path.find('/', start), path.size());
    const std::string part = path.substr(start, end - start);
    if (part.empty() || part == "." || part == "..") return false;
    start = end + 1;
  }
  return std::none_of(path.begin(), path.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

std::string normalized_etag(const std::string& header) {
  constexpr std::size_t kMaxBytes = 200;
  std::string etag = header.starts_with("W/") ? header.substr(2) : header;
  if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') etag = etag.substr(1, etag.size() - 2);
  const bool is_name = stays_inside(etag) && etag.size() <= kMaxBytes && etag.find('/') == std::string::npos;
  return is_name && !etag.ends_with(".incomplete") ? etag : "";
}

bool is_there(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) return false;
  if (error) throw_cache_error(path, "look at", error.value());
  return true;
}

void make_folders(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error && !fs::is_directory(path)) throw_cache_error(path, "make folder", error.value());
}

HubCache::HubCache(const HubSettings& settings, const HubRepo& repo) : use_symlinks_(settings.use_symlinks) {
  std::string name = repo.kind == HubRepo::Kind::kDataset ? "datasets--" : "models--";
  for (const char c : repo.id) name += c == '/' ? std::string("--") : std::string(1, c);
  folder_ = settings.cache / name;
  locks_ = settings.cache / ".locks" / name;
}

fs::path HubCache::pointer(const std::string& commit, const std::string& file) const {
  return folder_ / "snapshots" / commit / file;
}

std::optional<std::string> HubCache::commit_of(const std::string& revision) const {
  if (is_commit_hash(revision)) return revision;
  const fs::path path = folder_ / "refs" / revision;
  if (!is_there(path) || !fs::is_regular_file(path)) return std::nullopt;
  std::string commit = read_text_file(path);
  commit.erase(commit.find_last_not_of(" \r\n") + 1);
  if (!is_commit_hash(commit)) return std::nullopt;  // a write that was cut: asked anew
  return commit;
}

bool HubCache::has_file(const std::string& commit, const std::string& file) const {
  return is_there(pointer(commit, file));
}

bool HubCache::knows_absent(const std::string& commit, const std::string& file) const {
  return is_there(folder_ / ".no_exist" / commit / file);
}

std::vector<std::string> HubCache::files(const std::string& commit) const {
  const fs::path snapshot = folder_ / "snapshots" / commit;
  std::vector<std::string> names;
  if (!is_there(snapshot)) return names;
  std::error_code error;
  fs::recursive_directory_iterator entry(snapshot, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    std::error_code ignored;  // a link whose blob is gone is no file
    if (entry->is_regular_file(ignored)) names.push_back(entry->path().lexically_relative(snapshot).generic_string());
  }
  if (error) throw_cache_error(snapshot, "list", error.value());
  std::sort(names.begin(), names.end());
  return names;
}

// Beside the folders that the clients list: what a kill leaves here is in nobody's way.
fs::path HubCache::temporary() const {
  static std::atomic<unsigned> counter = 0;
  char host[64] = "";
  ::gethostname(host, sizeof host - 1);
  return folder_ / fmt::format("tmp_{}_{}_{}", host, ::getpid(), counter++);
}

void HubCache::remember_commit(const std::string& revision, const std::string& commit) const {
  if (revision == commit || commit_of(revision) == commit) return;
  const fs::path path = folder_ / "refs" / revision, beside = temporary();
  make_folders(path.parent_path());
  File file(beside, File::Mode::kCreate);
  file.write(as_bytes(commit));
  file.close();
  rename_durably(beside, path);
}

void HubCache::remember_absent(const std::string& commit, const std::string& file) const {
  const fs::path path = folder_ / ".no_exist" / commit / file;
  if (is_there(path)) return;
  make_folders(path.parent_path());
  make_folders(folder_ / "snapshots" / commit);  // a commit that is named has a snapshot: scan_cache_dir wants it
  File(path, File::Mode::kCreate).close();
}

void HubCache::place(const std::string& etag, const std::string& commit, const std::string& file, bool new_blob) const {
  const fs::path from = blob(etag), to = pointer(commit, file);
  make_folders(to.parent_path());
  std::error_code error;
  fs::remove(to, error);  // a link to a blob that is gone, or another's, or a file that was found not whole
  if (use_symlinks_) {
    fs::create_symlink(from.lexically_relative(to.parent_path()), to, error);
    if (!error || (error == std::errc::file_exists && is_there(to))) return;
    const bool has_links = error != std::errc::operation_not_permitted && error != std::errc::operation_not_supported &&
                           error != std::errc::function_not_supported && error != std::errc::permission_denied;
    if (has_links) throw_cache_error(to, "make link", error.value());
  }
  if (new_blob) return rename_durably(from, to);
  const fs::path beside = temporary();
  fs::copy_file(from, beside, fs::copy_options::overwrite_existing, error);
  if (error) throw_cache_error(beside, "write", error.value());
  rename_durably(beside, to);
}

HubLock::HubLock(const fs::path& path, const std::string& what) {
  make_folders(path.parent_path());
  constexpr auto kPoll = std::chrono::milliseconds(50);
  const auto start = std::chrono::steady_clock::now();
  bool is_told = false;
  while (true) {
    descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno == EACCES) descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);  // another user's
    if (descriptor_ < 0) throw_cache_error(path, "open lock", errno);
    const bool is_held = ::flock(descriptor_, LOCK_EX | LOCK_NB) != 0;
    const int error = errno;
    if (is_held && (error == ENOSYS || error == EOPNOTSUPP || error == ENOLCK)) return;
    struct stat ours {
    }, named{};
    if (!is_held && ::fstat(descriptor_, &ours) == 0 && ::stat(path.c_str(), &named) == 0 &&
        ours.st_ino == named.st_ino)
      return;
    ::close(std::exchange(descriptor_, -1));  // held by another, or removed between open and lock
    if (is_held && error != EWOULDBLOCK && error != EINTR && error != EACCES) throw_cache_error(path, "lock", error);
    throw_if_stopped(what);
    if (!is_told && std::chrono::steady_clock::now() - start > std::chrono::seconds(10)) {
      is_told = true;
      log::info("hub", "{}: waiting for another process that downloads it", what);
    }
    std::this_thread::sleep_for(kPoll);
  }
}

HubLock::~HubLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace dfm::formats
