#include "dfm/formats/hub.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "formats/http.h"
#include "formats/hub_cache.h"
#include "formats/hub_download.h"
#include "formats/hub_errors.h"

namespace dfm::formats {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxListBytes = 64 << 20;
const std::string kAsBefore = "as before";

std::optional<std::uint64_t> to_size(const std::string& text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty() ? std::optional(value)
                                                                                   : std::nullopt;
}

// One question about one file (or the list of them), with its answers from hub and cache.
class Lookup {
 public:
  Lookup(const HubSettings& settings, std::atomic<bool>& is_unreachable, const HubRepo& repo, const std::string& file)
      : settings_(settings),
        is_unreachable_(is_unreachable),
        repo_(repo),
        file_(file),
        what_(hub_name(repo, file)),
        cache_(settings, repo) {
    if (!is_hub_id(repo.id))
      throw ConfigError("hub {}: got '{}', want a name like google-t5/t5-small",
                        repo.kind == HubRepo::Kind::kDataset ? "dataset" : "model", repo.id);
    if (!stays_inside(repo.revision))
      throw ConfigError("hub {}: got revision '{}', want a branch, tag or commit", repo.id, repo.revision);
  }

  // Nothing: the repository has no such file; `refusal_` may tell more.
  std::optional<fs::path> find() {
    if (!stays_inside(file_)) throw ConfigError("{}: got a path that leaves the repository, want one inside", what_);
    if (is_commit_hash(repo_.revision)) {
      if (cache_.has_file(repo_.revision, file_)) return cache_.pointer(repo_.revision, file_);
      if (cache_.knows_absent(repo_.revision, file_)) return std::nullopt;
    }
    if (settings_.offline) return without_hub();
    HttpTries tries(settings_, what_);
    while (true) {
      const HttpResponse response = ask_for_metadata();
      throw_if_stopped(what_);
      switch (classify(response)) {
        case HubAnswer::kFile:
          return of_metadata(read_metadata(response));
        case HubAnswer::kNoEntry:
          remember_absent(response);
          refusal_ = response;
          return std::nullopt;
        case HubAnswer::kNoRevision:
          throw_hub_error(settings_, repo_, what_, response, 1);
        default:
          break;
      }
      if (const auto cached = in_cache()) {
        if (classify(response) == HubAnswer::kUnreachable) is_unreachable_ = true;
        if (response.failure != kAsBefore)
          log::warning("hub", "{}: got {} from {}; taking what the cache has", what_, response.text(),
                       settings_.endpoint);
        return cached;
      }
      if (tries.again(response)) continue;
      // One lost answer does not make a file absent: only what the hub said before counts.
      if (classify(response) == HubAnswer::kUnreachable && is_known_absent()) return std::nullopt;
      throw_hub_error(settings_, repo_, what_, response, tries.num_failed());
    }
  }

  [[noreturn]] void throw_absent() const {
    if (refusal_) throw_hub_error(settings_, repo_, what_, *refusal_, 1);
    throw DataError("{}: got no such file, according to the cache in {}, want one; hint: {}", what_,
                    cache_.folder().string(),
                    settings_.offline ? "unset HF_HUB_OFFLINE to download it"
                                      : "this commit has none, or the hub was not reached: check name and network");
  }

  std::vector<std::string> list() {
    if (settings_.offline) {
      if (has_snapshot()) return cache_.files(*cache_.commit_of(repo_.revision));
      throw_offline();
    }
    HttpTries tries(settings_, what_);
    while (true) {
      std::string body;
      const HttpResponse response = ask_for_list(body);
      throw_if_stopped(what_);
      const HubAnswer answer = classify(response);
      if (answer == HubAnswer::kFile && response.status == 200) return read_list(body);
      if (answer == HubAnswer::kNoRevision) throw_hub_error(settings_, repo_, what_, response, 1);
      if (tries.again(response)) continue;
      if (has_snapshot()) {
        is_unreachable_ = true;
        log::warning("hub", "{}: got {} from {}; taking what the cache has", what_, response.text(),
                     settings_.endpoint);
        return cache_.files(*cache_.commit_of(repo_.revision));
      }
      throw_hub_error(settings_, repo_, what_, response, tries.num_failed());
    }
  }

 private:
  [[nodiscard]] std::string resolve_url(const std::string& revision) const {
    return fmt::format("{}/{}{}/resolve/{}/{}", settings_.endpoint,
                       repo_.kind == HubRepo::Kind::kDataset ? "datasets/" : "", repo_.id, http_quote(revision, ""),
                       http_quote(file_, "/"));
  }

  [[nodiscard]] std::optional<fs::path> in_cache() const {
    const auto commit = cache_.commit_of(repo_.revision);
    if (!commit || !cache_.has_file(*commit, file_)) return std::nullopt;
    return cache_.pointer(*commit, file_);
  }

  [[nodiscard]] bool has_snapshot() const {
    const auto commit = cache_.commit_of(repo_.revision);
    return commit && !cache_.files(*commit).empty();
  }

  [[nodiscard]] bool is_known_absent() const {
    const auto commit = cache_.commit_of(repo_.revision);
    return commit && cache_.knows_absent(*commit, file_);
  }

  [[noreturn]] void throw_offline() const {
    throw DataError(
        "{}: got nothing in the cache in {} while HF_HUB_OFFLINE is set, want it there; hint: run once with "
        "a network and without HF_HUB_OFFLINE",
        what_, cache_.folder().parent_path().string());
  }

  // Nothing: the snapshot has no such file. Whether the repository has it cannot be known.
  std::optional<fs::path> without_hub() {
    if (auto cached = in_cache()) return cached;
    if (is_known_absent()) return std::nullopt;
    if (!has_snapshot()) throw_offline();
    log::debug("hub", "{}: not in the cache; offline, so taken for absent", what_);
    return std::nullopt;
  }

  // Redirects to the hub itself (a renamed repository) are followed; another host's are the answer: where the bytes
  // are.
  HttpResponse ask_for_metadata() {
    HttpResponse response;
    if (is_unreachable_ && (in_cache() || is_known_absent())) {
      response.failure = kAsBefore;
      response.is_final = true;
      return response;
    }
    HttpRequest request{.url = resolve_url(repo_.revision),
                        .is_head = true,
                        .token = settings_.token,
                        .timeout_seconds = settings_.metadata_timeout_seconds,
                        .ends_on_signal = true,
                        .on_body = {}};
    constexpr int kMaxRedirects = 10;
    for (int i = 0; i < kMaxRedirects; ++i) {
      response = http_request(request);
      if (!response.failure.empty() || !response.is_redirect()) return response;
      // Told by what curl makes of it, not by how it is written: the token goes along.
      std::string next = http_resolve(request.url, response.header("location"));
      if (http_origin(next) != http_origin(settings_.endpoint)) return response;
      request.url = std::move(next);
    }
    response.failure = "redirects without an end";
    response.is_final = true;
    return response;
  }

  HttpResponse ask_for_list(std::string& body) {
    const HttpRequest request{.url = fmt::format("{}/api/{}/{}/revision/{}", settings_.endpoint,
                                                 repo_.kind == HubRepo::Kind::kDataset ? "datasets" : "models",
                                                 repo_.id, http_quote(repo_.revision, "")),
                              .token = settings_.token,
                              .timeout_seconds = settings_.metadata_timeout_seconds,
                              .ends_on_signal = true,
                              .on_body = [&body](const HttpResponse&, std::span<const std::byte> bytes) -> std::string {
                                if (body.size() + bytes.size() > kMaxListBytes) return "a list without an end";
                                body.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
                                return "";
                              }};
    return http_follow(request, http_origin(settings_.endpoint));
  }

  [[nodiscard]] std::vector<std::string> read_list(const std::string& body) const {
    const auto json = nlohmann::json::parse(body, nullptr, false);
    if (!json.is_object() || !json.contains("siblings") || !json["siblings"].is_array())
      throw DataError(
          "{}: got an answer without `siblings`, want the hub's list of files; hint: check HF_ENDPOINT ({})", what_,
          settings_.endpoint);
    std::vector<std::string> names;
    for (const auto& sibling : json["siblings"]) {
      const bool is_named = sibling.is_object() && sibling.contains("rfilename") && sibling["rfilename"].is_string();
      names.push_back(is_named ? sibling["rfilename"].get<std::string>() : "");
      if (!stays_inside(names.back()))
        throw DataError("{}: got '{}', want paths inside the repository", what_, names.back());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  [[nodiscard]] HubMetadata read_metadata(const HttpResponse& response) const {
    HubMetadata metadata;
    metadata.commit = response.header("x-repo-commit");
    const std::string linked = response.header("x-linked-etag"), size = response.header("x-linked-size");
    metadata.etag = normalized_etag(linked.empty() ? response.header("etag") : linked);
    metadata.size = to_size(!size.empty() || response.is_redirect() ? size : response.header("content-length"));
    metadata.location = response.is_redirect() ? http_resolve(response.url, response.header("location")) : response.url;
    metadata.resolve_url = resolve_url(metadata.commit);
    if (!is_commit_hash(metadata.commit))
      throw DataError(
          "{}: got X-Repo-Commit '{}', want 40 hex digits; hint: {} does not answer as a hub: check HF_ENDPOINT "
          "and the proxy",
          what_, metadata.commit, settings_.endpoint);
    if (metadata.etag.empty())
      throw DataError(
          "{}: got ETag '{}', want a hash; hint: {} does not answer as a hub: check HF_ENDPOINT and the proxy", what_,
          linked.empty() ? response.header("etag") : linked, settings_.endpoint);
    if (http_origin(metadata.location).empty())
      throw DataError("{}: got a redirect to no http or https address, want one", what_);
    return metadata;
  }

  void remember_absent(const HttpResponse& response) const {
    const std::string commit = response.header("x-repo-commit");
    if (!is_commit_hash(commit)) return;
    try {
      cache_.remember_absent(commit, file_);
      cache_.remember_commit(repo_.revision, commit);
    } catch (const Error& error) {  // a cache that cannot be written: asked again next time
      log::debug("hub", "{}", error.what());
    }
  }

  [[nodiscard]] bool has_size(const fs::path& path, const HubMetadata& metadata) const {
    std::error_code error;
    const std::uint64_t size = fs::file_size(path, error);
    if (error || !metadata.size || size == *metadata.size) return true;
    log::warning("hub", "{}: got {} bytes in the cache, want {}; downloading it again", what_, size, *metadata.size);
    return false;
  }

  fs::path of_metadata(const HubMetadata& metadata) const {
    fs::path pointer = cache_.pointer(metadata.commit, file_);
    if (cache_.has_file(metadata.commit, file_) && has_size(pointer, metadata)) {
      try {
        cache_.remember_commit(repo_.revision, metadata.commit);
      } catch (const Error& error) {  // the file is there: a cache that cannot be written will do
        log::debug("hub", "{}", error.what());
      }
      return pointer;
    }
    const fs::path blob = cache_.blob(metadata.etag);
    make_folders(blob.parent_path());
    make_folders(pointer.parent_path());
    cache_.remember_commit(repo_.revision, metadata.commit);
    const HubLock lock(cache_.lock(metadata.etag), what_);
    const auto is_whole = [&](const fs::path& path) {  // another process may have made it while this one waited
      std::error_code error;
      return fs::exists(path, error) && (!metadata.size || fs::file_size(path, error) == *metadata.size);
    };
    if (is_whole(pointer)) return pointer;
    const bool new_blob = !is_whole(blob);
    if (new_blob) download_blob(settings_, metadata, blob, what_, repo_);
    cache_.place(metadata.etag, metadata.commit, file_, new_blob);
    return pointer;
  }

  const HubSettings& settings_;
  std::atomic<bool>& is_unreachable_;
  const HubRepo& repo_;
  const std::string file_, what_;
  const HubCache cache_;
  std::optional<HttpResponse> refusal_;
};

}  // namespace

Hub::Hub(HubSettings settings)
    : settings_(std::move(settings)), is_unreachable_(std::make_shared<std::atomic<bool>>(false)) {
  if (settings_.cache.empty()) throw ConfigError("hub cache: got no folder, want one; hint: HF_HUB_CACHE");
  // Relative links and locks need one name for the folder, wherever the process goes.
  settings_.cache = fs::absolute(settings_.cache).lexically_normal();
}

fs::path Hub::fetch(const HubRepo& repo, const std::string& file) const {
  Lookup lookup(settings_, *is_unreachable_, repo, file);
  auto path = lookup.find();
  if (!path) lookup.throw_absent();
  return *std::move(path);
}

std::optional<fs::path> Hub::fetch_if_there(const HubRepo& repo, const std::string& file) const {
  return Lookup(settings_, *is_unreachable_, repo, file).find();
}

std::vector<std::string> Hub::list(const HubRepo& repo) const {
  return Lookup(settings_, *is_unreachable_, repo, "list of files").list();
}

}  // namespace dfm::formats
