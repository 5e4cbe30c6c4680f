#include "formats/hub_errors.h"

#include "dfm/base/error.h"

namespace dfm::formats {
namespace {

std::string page(const HubSettings& settings, const HubRepo& repo) {
  return fmt::format("{}/{}{}", settings.endpoint, repo.kind == HubRepo::Kind::kDataset ? "datasets/" : "", repo.id);
}

std::string refusal_hint(const HubSettings& settings, const HubRepo& repo, const HttpResponse& response) {
  const std::string code = response.header("x-error-code"), where = page(settings, repo);
  const bool has_token = !settings.token.empty();
  if (code == "GatedRepo")
    return has_token ? fmt::format("ask for access at {} with the account that HF_TOKEN belongs to", where)
                     : fmt::format("ask for access at {}, then set HF_TOKEN to a token of that account", where);
  if (response.header("x-error-message").starts_with("Invalid credentials")) return "HF_TOKEN holds no valid token";
  if (has_token) return "check the name; if it is private, the token in HF_TOKEN may not read it";
  return "check the name; if it is private or gated, set HF_TOKEN to a token that may read it";
}

}  // namespace

std::string hub_name(const HubRepo& repo, const std::string& file) {
  return fmt::format("hub {} {}{}: {}", repo.kind == HubRepo::Kind::kDataset ? "dataset" : "model", repo.id,
                     repo.revision == "main" ? "" : "@" + repo.revision, file);
}

HubAnswer classify(const HttpResponse& response) {
  if (!response.failure.empty()) return HubAnswer::kUnreachable;
  const std::string code = response.header("x-error-code");
  if (code == "EntryNotFound") return HubAnswer::kNoEntry;
  if (code == "RevisionNotFound") return HubAnswer::kNoRevision;
  if (response.is_temporary()) return HubAnswer::kTemporary;
  if (response.status < 400) return HubAnswer::kFile;
  return HubAnswer::kRefused;
}

void throw_hub_error(const HubSettings& settings, const HubRepo& repo, const std::string& what,
                     const HttpResponse& response, int num_tries) {
  const std::string got = response.text() + (num_tries > 1 ? fmt::format(" {} times", num_tries) : "");
  switch (classify(response)) {
    case HubAnswer::kNoEntry:
      throw DataError("{}: got {}, want a file; hint: {}/tree/{} lists what there is", what, got, page(settings, repo),
                      http_quote(repo.revision, ""));
    case HubAnswer::kNoRevision:
      throw DataError("{}: got {}, want a branch, tag or commit; hint: {}/refs lists the branches and tags", what, got,
                      page(settings, repo));
    case HubAnswer::kUnreachable:
      throw DataError(
          "{}: got {} from {}, want the file; hint: check the network, proxy and HF_ENDPOINT; what has come "
          "so far is kept",
          what, got, settings.endpoint);
    case HubAnswer::kTemporary:
      if (response.status == 429)
        throw DataError("{}: got {}, too many requests, want fewer; hint: {}", what, got,
                        response.retry_after_seconds > 0
                            ? fmt::format("the hub asks to wait {:g} s", response.retry_after_seconds)
                        : settings.token.empty() ? "wait a while, or set HF_TOKEN: accounts may ask more often"
                                                 : "wait a while");
      throw DataError("{}: got {} from {}, want the file; hint: the hub has a problem, try again later", what, got,
                      settings.endpoint);
    case HubAnswer::kRefused:
      if (response.status == 401 || response.status == 403 || response.status == 404)
        throw DataError("{}: got {}, want access; hint: {}", what, got, refusal_hint(settings, repo, response));
      [[fallthrough]];
    case HubAnswer::kFile:
      break;
  }
  throw DataError("{}: got {} from {}, want status 200; hint: check HF_ENDPOINT and the proxy", what, got,
                  settings.endpoint);
}

}  // namespace dfm::formats
