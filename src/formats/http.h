#pragma once
// One HTTP request at a time, by libcurl. Nothing here throws for what a server or a network does: the answer tells.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>

#include "dfm/formats/hub.h"

namespace dfm::formats {

struct HttpResponse {
  long status = 0;                             // 0: no answer came
  std::string failure;                         // why the answer did not come, or not whole; empty: it did
  bool is_final = false;                       // of a failure: another try would end the same way
  std::string url;                             // that was asked
  std::map<std::string, std::string> headers;  // names in lower case
  double retry_after_seconds = 0;              // what the server asks for; 0: nothing
  [[nodiscard]] std::string header(const std::string& name) const;  // "" if there is none
  [[nodiscard]] bool is_whole() const { return failure.empty() && (status == 200 || status == 206); }
  [[nodiscard]] bool is_redirect() const { return status >= 300 && status < 400 && !header("location").empty(); }
  // Whether the same request may succeed later: no answer, a cut one, 408, 429, 5xx.
  [[nodiscard]] bool is_temporary() const;
  // "status 503", "status 404 (RevisionNotFound)", "no answer (Connection refused)"
  [[nodiscard]] std::string text() const;
};

struct HttpRequest {
  std::string url;
  bool is_head = false;
  std::string token;         // sent as it is: the caller knows to whom (http_follow does)
  std::uint64_t offset = 0;  // not 0: asks for the bytes from here on
  double timeout_seconds = 10;
  bool ends_on_signal = false;  // SIGINT or SIGTERM came (base/stop_signals.h): throw_if_stopped
  // Gets the pieces of the body of a 200 or 206. Returns "" to go on, or why to stop. May throw.
  std::function<std::string(const HttpResponse&, std::span<const std::byte>)> on_body;
};

// No redirect is followed. Only http and https, proxies as the environment says.
HttpResponse http_request(const HttpRequest& request);
// Follows up to 10 redirects; request.token is sent to `token_origin` only.
HttpResponse http_follow(HttpRequest request, const std::string& token_origin);

// "https://host:443" in lower case; "" where the URL is none of http or https.
std::string http_origin(const std::string& url);
// What a Location header means on the page `base`; "" where it means nothing.
std::string http_resolve(const std::string& base, const std::string& location);
// For a path: all but letters, digits, `_.-~` and the characters of `safe` as %XX.
std::string http_quote(const std::string& text, const std::string& safe);

// Throws what ends the run when a StopSignals has caught one. What is downloaded so far stays.
void throw_if_stopped(const std::string& what);

// The tries of one request.
class HttpTries {
 public:
  HttpTries(const HubSettings& settings, std::string what) : settings_(settings), what_(std::move(what)) {}
  // After a failed try: waits and returns true, or returns false where no other try should be made.
  bool again(const HttpResponse& response);
  void start_anew() { num_failed_ = 0; }
  [[nodiscard]] int num_failed() const { return num_failed_; }

 private:
  const HubSettings& settings_;
  std::string what_;
  int num_failed_ = 0;
};

}  // namespace dfm::formats
