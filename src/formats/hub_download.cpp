#include "formats/hub_download.h"

extern "C" {
#include <libavutil/mem.h>
#include <libavutil/sha.h>
}

#include <algorithm>
#include <charconv>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "dfm/base/progress.h"
#include "formats/hub_errors.h"

namespace dfm::formats {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMiB = 1048576;

bool is_hex(const std::string& text, std::size_t size) {
  return text.size() == size && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

File open_partial(const fs::path& path) {
  File(path, File::Mode::kAppend).close();  // makes it, keeps what is there
  return {path, File::Mode::kWrite};
}

// The first byte of "bytes 100-199/200"; nothing where the header is no range.
std::optional<std::uint64_t> range_start(const std::string& header) {
  const std::string unit = "bytes ";
  std::uint64_t start = 0;
  if (!header.starts_with(unit)) return std::nullopt;
  const auto [end, error] = std::from_chars(header.data() + unit.size(), header.data() + header.size(), start);
  return error == std::errc() && end != header.data() + header.size() && *end == '-' ? std::optional(start)
                                                                                     : std::nullopt;
}

// Counts MiB: bytes would make a long line.
class Bar {
 public:
  Bar(const HubSettings& settings, const std::string& what, std::optional<std::uint64_t> size, std::uint64_t done) {
    if (!settings.show_progress || !size || *size < kMiB) return;
    shown_ = done / kMiB;
    bar_.emplace(what, *size / kMiB, "MiB", shown_);
  }
  void show(std::uint64_t done) {
    if (!bar_ || done / kMiB <= shown_) return;
    bar_->advance(done / kMiB - shown_);
    shown_ = done / kMiB;
  }
  void finish() {
    if (bar_) bar_->finish();
  }

 private:
  std::optional<Progress> bar_;
  std::uint64_t shown_ = 0;
};

// Says before 40 GB are on the disk that 45 will not fit.
void check_space(const fs::path& folder, std::uint64_t missing_bytes, const std::string& what) {
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (!error && space.available < missing_bytes)
    throw ResourceError(
        "{}: got {} of free disk space in {}, want {}; hint: free some, or name another folder with "
        "HF_HUB_CACHE",
        what, format_bytes(space.available), folder.string(), format_bytes(missing_bytes));
}

// One download: tries until the file has all its bytes.
class Download {
 public:
  Download(const HubSettings& settings, const HubMetadata& metadata, const HubRepo& repo, const std::string& what,
           PartialFile& file)
      : settings_(settings),
        metadata_(metadata),
        repo_(repo),
        what_(what),
        file_(file),
        tries_(settings, what),
        bar_(settings, what, metadata.size, file.size()) {}

  void run() {
    if (metadata_.size && file_.size() > *metadata_.size) file_.restart();  // longer than the file: something else
    std::uint64_t most = file_.size();
    bool is_first = true;
    while (metadata_.size != file_.size()) {
      const HttpResponse response = ask(std::exchange(is_first, false) ? metadata_.location : metadata_.resolve_url);
      throw_if_stopped(what_);
      if (response.is_whole() && (!metadata_.size || file_.size() == *metadata_.size)) break;
      if (response.status == 416 && file_.size() > 0) {
        // The server has no bytes from there on. A file of unknown size may be whole: its hash tells.
        if (!metadata_.size && response.header("content-range") == fmt::format("bytes */{}", file_.size())) break;
        file_.restart();
      }
      if (file_.size() > most) tries_.start_anew();
      most = std::max(most, file_.size());
      retry_or_throw(response);
    }
    bar_.finish();
  }

 private:
  HttpResponse ask(const std::string& url) {
    const HttpRequest request{.url = url,
                              .token = settings_.token,
                              .offset = file_.size(),
                              .timeout_seconds = settings_.timeout_seconds,
                              .ends_on_signal = true,
                              .on_body = [this, is_first = true, offset = file_.size()](
                                             const HttpResponse& response, std::span<const std::byte> bytes) mutable {
                                std::string problem;
                                if (std::exchange(is_first, false)) problem = start(response, offset);
                                return problem.empty() ? take(bytes) : problem;
                              }};
    return http_follow(request, http_origin(settings_.endpoint));
  }

  std::string start(const HttpResponse& response, std::uint64_t offset) {
    if (response.status == 206) {
      if (range_start(response.header("content-range")) == offset) return "";
      return fmt::format("Content-Range '{}', want bytes from {}", response.header("content-range"), offset);
    }
    if (offset > 0) file_.restart();  // 200: the whole file comes again
    return "";
  }

  std::string take(std::span<const std::byte> bytes) {
    if (metadata_.size && file_.size() + bytes.size() > *metadata_.size)
      return fmt::format("more than the {} bytes that the hub names", *metadata_.size);
    file_.write(bytes);
    bar_.show(file_.size());
    return "";
  }

  void retry_or_throw(const HttpResponse& response) {
    HttpResponse told = response;
    // An answer that ended early without breaking the protocol, or a range that is not there: asked for once more.
    if (response.is_whole()) told.failure = fmt::format("{} of {} bytes", file_.size(), *metadata_.size);
    if (response.status == 416) told.failure = "status 416";
    if (tries_.again(told)) return;
    if (!told.failure.empty() && response.status != 0)
      throw DataError("{}: got {} of {} bytes ({}, {} tries), want all; hint: run again: the download continues", what_,
                      file_.size(), metadata_.size ? std::to_string(*metadata_.size) : "?", told.failure,
                      tries_.num_failed());
    throw_hub_error(settings_, repo_, what_, response, tries_.num_failed());
  }

  const HubSettings& settings_;
  const HubMetadata& metadata_;
  const HubRepo& repo_;
  const std::string& what_;
  PartialFile& file_;
  HttpTries tries_;
  Bar bar_;
};

}  // namespace

Sha::Sha(int bits) : context_(av_sha_alloc()), bits_(bits) {
  if (context_ == nullptr || av_sha_init(context_, bits) < 0) throw InternalError("sha{}: cannot be initialised", bits);
}

Sha::~Sha() { av_free(context_); }

void Sha::update(std::span<const std::byte> bytes) {
  av_sha_update(context_, reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
}

std::string Sha::hex() {
  std::array<std::uint8_t, 32> digest{};
  av_sha_final(context_, digest.data());
  std::string text;
  for (int i = 0; i < bits_ / 8; ++i) text += fmt::format("{:02x}", digest[static_cast<std::size_t>(i)]);
  return text;
}

std::string git_blob_sha1(std::span<const std::byte> contents) {
  Sha sha(160);
  const std::string head = fmt::format("blob {}", contents.size());
  sha.update(as_bytes({head.c_str(), head.size() + 1}));  // with the zero at its end
  sha.update(contents);
  return sha.hex();
}

PartialFile::PartialFile(fs::path path, const std::string& etag)
    : path_(std::move(path)), etag_(etag), file_(open_partial(path_)), size_(file_.size()) {
  if (!is_hex(etag_, 64)) return;
  sha256_ = std::make_unique<Sha>(256);
  if (size_ > 0) sha256_->update(MappedFile(path_).bytes());
}

void PartialFile::write(std::span<const std::byte> bytes) {
  file_.write_at(size_, bytes);  // not appended: where locks do not hold, two writers write the same bytes twice
  size_ += bytes.size();
  if (sha256_) sha256_->update(bytes);
}

void PartialFile::restart() {
  file_.allocate(0);
  size_ = 0;
  if (sha256_) sha256_ = std::make_unique<Sha>(256);
}

std::string PartialFile::mismatch() {
  std::string got, kind = "sha256";
  if (sha256_) {
    got = sha256_->hex();
  } else if (is_hex(etag_, 40)) {  // what git holds is small
    kind = "git sha1";
    got = git_blob_sha1(MappedFile(path_).bytes());
  } else {
    return "";
  }
  return got == etag_ ? "" : kind + " " + got;
}

void PartialFile::sync_and_rename(const fs::path& to) {
  file_.sync();
  file_.close();
  std::error_code error;
  if (!fs::exists(path_, error) && fs::exists(to, error)) return;  // where locks do not hold: another was first
  rename_durably(path_, to);
}

void download_blob(const HubSettings& settings, const HubMetadata& metadata, const fs::path& blob,
                   const std::string& what, const HubRepo& repo) {
  fs::path beside = blob;
  beside += ".incomplete";
  for (bool is_again = false;; is_again = true) {
    PartialFile file(beside, metadata.etag);
    const std::uint64_t found = file.size();
    if (found > 0) log::info("hub", "{}: continuing at {}", what, format_bytes(found));
    if (metadata.size && *metadata.size > found) check_space(blob.parent_path(), *metadata.size - found, what);
    Download(settings, metadata, repo, what, file).run();
    const std::string mismatch = file.mismatch();
    if (mismatch.empty()) return file.sync_and_rename(blob);
    std::error_code ignored;
    fs::remove(beside, ignored);
    // What was there before may have been damaged: then all of it once more.
    if (found == 0 || is_again)
      throw DataError("{}: got {}, want {}; hint: the bytes were changed on their way (proxy, mirror), run again", what,
                      mismatch, metadata.etag);
    log::warning("hub", "{}: got {}, want {}; downloading all of it again", what, mismatch, metadata.etag);
  }
}

}  // namespace dfm::formats
