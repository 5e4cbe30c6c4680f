#include <fmt/format.h>

#include <string>

#include "dfm/base/error.h"
#include "dfm/base/progress.h"
#include "dfm/formats/hub.h"
#include "formats/http.h"

namespace dfm::formats {
namespace {

// For messages: without user and password, and not endless.
std::string shown(const std::string& url) {
  constexpr std::size_t kMaxShown = 200;
  std::string text = url;
  const auto host = text.find("://");
  const auto end = host == std::string::npos ? host : text.find_first_of("/?#", host + 3);
  const auto at = host == std::string::npos ? host : text.substr(0, end).rfind('@');
  if (at != std::string::npos) text.erase(host + 3, at - host - 2);
  return text.size() > kMaxShown ? text.substr(0, kMaxShown) + "..." : text;
}

}  // namespace

std::string http_get(const std::string& url, const HubSettings& settings, std::uint64_t max_bytes) {
  const std::string what = shown(url);
  if (http_origin(url).empty()) throw DataError("{}: got no http or https address, want one", what);
  if (settings.offline) throw DataError("{}: got HF_HUB_OFFLINE, want a network; hint: unset HF_HUB_OFFLINE", what);
  HttpTries tries(settings, what);
  while (true) {
    std::string body;
    bool is_too_large = false;
    const HttpRequest request{
        .url = url,
        .timeout_seconds = settings.timeout_seconds,
        .on_body = [&](const HttpResponse& response, std::span<const std::byte> bytes) -> std::string {
          const std::string length = response.header("content-length");
          is_too_large =
              body.size() + bytes.size() > max_bytes ||
              (length.size() < 19 && !length.empty() && std::strtoull(length.c_str(), nullptr, 10) > max_bytes);
          if (is_too_large) return "too large";
          body.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
          return "";
        }};
    const HttpResponse response = http_follow(request, "");
    if (is_too_large) throw DataError("{}: got more than {}, want at most that", what, format_bytes(max_bytes));
    if (response.is_whole() && response.status == 200) return body;
    if (!tries.again(response))
      throw DataError("{}: got {}{}, want status 200", what, response.text(),
                      tries.num_failed() > 1 ? fmt::format(" ({} tries)", tries.num_failed()) : "");
  }
}

}  // namespace dfm::formats
