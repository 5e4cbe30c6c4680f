#include "dfm/checkpoint/run_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/log.h"

namespace dfm::checkpoint {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kPrefix = "iter_", kUnfinished = ".tmp";
constexpr const char* kLatest = "latest_checkpointed_iteration.txt";

// The number in `iter_<digits>`.
std::optional<std::int64_t> iteration_of(const std::string& name) {
  constexpr std::size_t kMaxDigits = 18;
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const std::string digits = name.substr(kPrefix.size());
  const bool all_digits = std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (digits.empty() || digits.size() > kMaxDigits || !all_digits) return std::nullopt;
  return std::stoll(digits);
}

bool is_unfinished(const std::string& name) {
  return name.ends_with(kUnfinished) && iteration_of(name.substr(0, name.size() - kUnfinished.size()));
}

template <typename Body>
auto with_file_errors(Body&& body) {
  try {
    return body();
  } catch (const fs::filesystem_error& error) {
    const std::string reason = error.code().message();
    if (error.code() == std::errc::no_space_on_device) {
      throw ResourceError("{}: got {}; hint: free some space", error.path1().string(), reason);
    }
    throw CheckpointError("{}: got {}, want a checkpoint folder", error.path1().string(), reason);
  }
}

void sync_path(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw CheckpointError("{}: cannot open it to sync", path.string());
  const bool failed = ::fsync(descriptor) != 0 && errno != EINVAL && errno != EROFS;
  const bool is_full = errno == ENOSPC || errno == EDQUOT;
  ::close(descriptor);
  if (failed && is_full) throw ResourceError("{}: cannot sync: the disk is full; hint: free some space", path.string());
  if (failed) throw CheckpointError("{}: cannot sync", path.string());
}

void sync_tree(const fs::path& folder) {
  for (const auto& item : fs::recursive_directory_iterator(folder)) {
    if (!item.is_symlink() && (item.is_regular_file() || item.is_directory())) sync_path(item.path());
  }
  sync_path(folder);
}

// Removes so that a kill in between leaves nothing that looks complete.
void remove_iteration(const fs::path& folder) {
  const fs::path doomed = folder.string() + std::string(kUnfinished);
  fs::remove_all(doomed);
  fs::rename(folder, doomed);
  fs::remove_all(doomed);
}

// Puts `unfinished` in the place of `final_path`; an iteration of that number that was there is gone afterwards.
void put_in_place(const fs::path& unfinished, const fs::path& final_path) {
  if (fs::exists(final_path)) {
    // At each moment one of the two has the final name.
    if (::renameat2(AT_FDCWD, unfinished.c_str(), AT_FDCWD, final_path.c_str(), RENAME_EXCHANGE) == 0) {
      sync_path(final_path.parent_path());
      fs::remove_all(unfinished);
      return;
    }
    const fs::path replaced = final_path.string() + ".replaced";  // file systems that cannot exchange
    fs::remove_all(replaced);
    fs::rename(final_path, replaced);
    rename_durably(unfinished, final_path);
    fs::remove_all(replaced);
    return;
  }
  rename_durably(unfinished, final_path);
}

void prune(const fs::path& run_folder, std::int64_t keep, std::int64_t newest) {
  if (keep <= 0) return;
  std::vector<IterationFolder> found = complete_iterations(run_folder);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < found.size(); ++i) {
    if (found[i].iteration != newest) remove_iteration(found[i].path);
  }
}

// Rank 0, before the others write: what a killed save left goes, the folder to write into comes.
void make_unfinished(const fs::path& run_folder, const fs::path& unfinished) {
  fs::create_directories(run_folder);
  std::vector<fs::path> leftovers;
  for (const auto& item : fs::directory_iterator(run_folder)) {
    if (is_unfinished(item.path().filename().string())) leftovers.push_back(item.path());
  }
  for (const fs::path& leftover : leftovers) fs::remove_all(leftover);
  fs::create_directory(unfinished);
}

}  // namespace

std::string iteration_name(std::int64_t iteration) { return fmt::format("{}{:07}", kPrefix, iteration); }

std::vector<IterationFolder> complete_iterations(const fs::path& run_folder) {
  return with_file_errors([&] {
    std::vector<IterationFolder> found;
    if (!fs::is_directory(run_folder)) return found;
    for (const auto& item : fs::directory_iterator(run_folder)) {
      const auto iteration = iteration_of(item.path().filename().string());
      if (iteration && item.is_directory()) found.push_back({item.path(), *iteration});
    }
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.iteration < b.iteration; });
    return found;
  });
}

IterationFolder resolve_iteration(const fs::path& path) {
  return with_file_errors([&]() -> IterationFolder {
    fs::path plain = path.lexically_normal();
    if (!plain.has_filename()) plain = plain.parent_path();
    const std::string name = plain.filename().string();
    if (is_unfinished(name)) {
      throw CheckpointError(
          "checkpoint {}: got a folder that was never finished, want a complete iteration; hint: use "
          "one whose name does not end in {}",
          path.string(), kUnfinished);
    }
    if (const auto iteration = iteration_of(name)) {
      if (fs::is_directory(plain)) return {plain, *iteration};
      const fs::path padded = plain.parent_path() / iteration_name(*iteration);
      if (fs::is_directory(padded)) return {padded, *iteration};
    }
    std::vector<IterationFolder> found = complete_iterations(plain);
    if (!found.empty()) return found.back();
    if (!fs::exists(plain)) {
      const auto beside = complete_iterations(plain.parent_path());
      throw CheckpointError("checkpoint {}: got a path that does not exist, want a run or iteration folder{}",
                            path.string(),
                            beside.empty() ? "" : "; hint: there is " + beside.back().path.filename().string());
    }
    throw CheckpointError("checkpoint {}: got no complete iteration in it, want a folder {}", path.string(),
                          iteration_name(1000));
  });
}

IterationFolder save_iteration(const fs::path& run_folder, std::int64_t iteration, std::int64_t keep,
                               comm::World& world, const std::function<void(const fs::path& folder)>& write) {
  const fs::path final_path = run_folder / iteration_name(iteration);
  const fs::path unfinished = final_path.string() + std::string(kUnfinished);
  const auto on_first = [&](const auto& body) { world.on_first([&] { with_file_errors(body); }); };
  on_first([&] { make_unfinished(run_folder, unfinished); });
  try {
    with_file_errors([&] { write(unfinished); });
    world.all()->barrier();
    on_first([&] { sync_tree(unfinished); });
  } catch (...) {
    // A full disk gets its space back. Other ranks may be doing the same, which can get in the way.
    std::error_code ignored;
    for (int i = 0; i < 3 && fs::exists(unfinished, ignored); ++i) fs::remove_all(unfinished, ignored);
    throw;
  }
  on_first([&] {
    put_in_place(unfinished, final_path);
    write_file_atomically(run_folder / kLatest, std::to_string(iteration));
    prune(run_folder, keep, iteration);
  });
  return {final_path, iteration};
}

}  // namespace dfm::checkpoint
