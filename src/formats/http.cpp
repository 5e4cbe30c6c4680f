#include "formats/http.h"

#include <curl/curl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <thread>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "dfm/base/stop_signals.h"

namespace dfm::formats {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxRedirects = 10;
constexpr std::size_t kMaxHeaderBytes = 16384;
constexpr double kMaxWaitSeconds = 60, kMaxAskedSeconds = 300;

struct CurlDeleter {
  void operator()(CURL* handle) const { curl_easy_cleanup(handle); }
};
struct ListDeleter {
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};
struct UrlDeleter {
  void operator()(CURLU* url) const { curl_url_cleanup(url); }
};
using Url = std::unique_ptr<CURLU, UrlDeleter>;

// One handle a thread: it keeps its connections from request to request.
CURL* thread_handle() {
  static const CURLcode initialised = curl_global_init(CURL_GLOBAL_DEFAULT);
  thread_local const std::unique_ptr<CURL, CurlDeleter> handle(curl_easy_init());
  if (initialised != CURLE_OK || handle == nullptr) throw InternalError("libcurl: cannot be initialised");
  curl_easy_reset(handle.get());
  return handle.get();
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
  return text;
}

std::string strip(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

struct Transfer {
  CURL* handle;
  const HttpRequest& request;
  HttpResponse response;
  std::string stopped;  // why on_body wants no more
  std::exception_ptr thrown;
  curl_off_t seen_bytes = -1;
  Clock::time_point last_byte = Clock::now();
  bool is_timeout = false;
};

std::size_t take_header(char* data, std::size_t, std::size_t size, void* pointer) {
  auto& transfer = *static_cast<Transfer*>(pointer);
  transfer.last_byte = Clock::now();
  const std::string line(data, std::min(size, kMaxHeaderBytes));
  const auto colon = line.find(':');
  if (line.starts_with("HTTP/")) transfer.response.headers.clear();  // an interim answer's headers are not the answer's
  if (colon == std::string::npos || size > kMaxHeaderBytes) return size;
  transfer.response.headers[lower(strip(line.substr(0, colon)))] = strip(line.substr(colon + 1));
  return size;
}

std::size_t take_body(char* data, std::size_t, std::size_t size, void* pointer) {
  auto& transfer = *static_cast<Transfer*>(pointer);
  curl_easy_getinfo(transfer.handle, CURLINFO_RESPONSE_CODE, &transfer.response.status);
  const bool is_wanted = transfer.response.status == 200 || transfer.response.status == 206;
  if (!is_wanted || !transfer.request.on_body) return size;
  try {
    transfer.stopped = transfer.request.on_body(transfer.response, {reinterpret_cast<const std::byte*>(data), size});
  } catch (...) {  // through C code no exception may pass
    transfer.thrown = std::current_exception();
  }
  return transfer.thrown || !transfer.stopped.empty() ? CURL_WRITEFUNC_ERROR : size;
}

int watch(void* pointer, curl_off_t, curl_off_t received, curl_off_t, curl_off_t) {
  auto& transfer = *static_cast<Transfer*>(pointer);
  const auto now = Clock::now();
  if (received != transfer.seen_bytes) {
    transfer.seen_bytes = received;
    transfer.last_byte = now;
  }
  transfer.is_timeout =
      std::chrono::duration<double>(now - transfer.last_byte).count() > transfer.request.timeout_seconds;
  return transfer.is_timeout || (transfer.request.ends_on_signal && StopSignals::received() != 0) ? 1 : 0;
}

// Certificates of one's own, named as for Python's clients.
void use_own_certificates(CURL* handle) {
  for (const char* name : {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    std::error_code error;
    curl_easy_setopt(handle, std::filesystem::is_directory(value, error) ? CURLOPT_CAPATH : CURLOPT_CAINFO, value);
    return;
  }
}

// Seconds from `RateLimit: "api";r=0;t=55`, which the hub sends with a 429 in place of Retry-After.
double rate_limit_seconds(const std::string& header) {
  const auto place = header.find(";t=");
  return place == std::string::npos ? 0 : std::max(0.0, std::atof(header.c_str() + place + 3));
}

std::string part(CURLU* url, CURLUPart which, unsigned flags) {
  char* text = nullptr;
  if (curl_url_get(url, which, &text, flags) != CURLUE_OK) return "";
  std::string result(text);
  curl_free(text);
  return result;
}

void finish(Transfer& transfer, CURLcode code, const char* message) {
  HttpResponse& response = transfer.response;
  curl_easy_getinfo(transfer.handle, CURLINFO_RESPONSE_CODE, &response.status);
  curl_off_t asked = 0;
  curl_easy_getinfo(transfer.handle, CURLINFO_RETRY_AFTER, &asked);
  response.retry_after_seconds = static_cast<double>(asked);
  if (asked <= 0 && response.status == 429)
    response.retry_after_seconds = rate_limit_seconds(response.header("ratelimit"));
  if (code == CURLE_OK) return;
  response.failure = transfer.is_timeout         ? fmt::format("no byte for {:g} s", transfer.request.timeout_seconds)
                     : !transfer.stopped.empty() ? transfer.stopped
                     : *message != '\0'          ? message
                                                 : curl_easy_strerror(code);
  response.is_final = code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE ||
                      code == CURLE_UNSUPPORTED_PROTOCOL || code == CURLE_URL_MALFORMAT ||
                      // No network: said at once. In the middle of a download it may come back.
                      (code == CURLE_COULDNT_RESOLVE_HOST && transfer.request.offset == 0);
}

}  // namespace

std::string HttpResponse::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

bool HttpResponse::is_temporary() const {
  if (!failure.empty()) return !is_final;
  return status == 408 || status == 429 || (status >= 500 && status != 501 && status != 505);
}

std::string HttpResponse::text() const {
  if (!failure.empty()) return fmt::format("{} ({})", status == 0 ? "no answer" : "part of an answer", failure);
  const std::string code = header("x-error-code");
  const bool is_name = !code.empty() && code.size() < 40 &&
                       std::all_of(code.begin(), code.end(), [](unsigned char c) { return std::isalnum(c) != 0; });
  return is_name ? fmt::format("status {} ({})", status, code) : fmt::format("status {}", status);
}

HttpResponse http_request(const HttpRequest& request) {
  CURL* handle = thread_handle();
  Transfer transfer{.handle = handle, .request = request, .response = {}, .stopped = {}, .thrown = {}};
  transfer.response.url = request.url;
  std::array<char, CURL_ERROR_SIZE> message{};
  curl_slist* lines = nullptr;
  if (!request.token.empty()) lines = curl_slist_append(lines, ("Authorization: Bearer " + request.token).c_str());
  if (request.offset > 0) lines = curl_slist_append(lines, fmt::format("Range: bytes={}-", request.offset).c_str());
  // The size that counts is the file's own.
  lines = curl_slist_append(lines, "Accept-Encoding: identity");
  const std::unique_ptr<curl_slist, ListDeleter> headers(lines);

  curl_easy_setopt(handle, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(handle, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(handle, CURLOPT_HTTPHEADER, headers.get());
  curl_easy_setopt(handle, CURLOPT_USERAGENT, "dfm");
  curl_easy_setopt(handle, CURLOPT_NOBODY, request.is_head ? 1L : 0L);
  curl_easy_setopt(handle, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(handle, CURLOPT_BUFFERSIZE, 262144L);
  curl_easy_setopt(handle, CURLOPT_CONNECTTIMEOUT_MS, std::lround(std::max(0.001, request.timeout_seconds) * 1000));
  curl_easy_setopt(handle, CURLOPT_ERRORBUFFER, message.data());
  curl_easy_setopt(handle, CURLOPT_HEADERFUNCTION, take_header);
  curl_easy_setopt(handle, CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, take_body);
  curl_easy_setopt(handle, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(handle, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(handle, CURLOPT_XFERINFOFUNCTION, watch);
  curl_easy_setopt(handle, CURLOPT_XFERINFODATA, &transfer);
  use_own_certificates(handle);
  const CURLcode code = curl_easy_perform(handle);
  if (!transfer.thrown) finish(transfer, code, message.data());
  curl_easy_reset(handle);  // it outlives what it points to; connections stay
  if (transfer.thrown) std::rethrow_exception(transfer.thrown);
  return std::move(transfer.response);
}

HttpResponse http_follow(HttpRequest request, const std::string& token_origin) {
  const std::string token = std::exchange(request.token, "");
  for (int i = 0; i <= kMaxRedirects; ++i) {
    request.token = http_origin(request.url) == token_origin ? token : "";
    HttpResponse response = http_request(request);
    if (!response.failure.empty() || !response.is_redirect()) return response;
    request.url = http_resolve(request.url, response.header("location"));
    if (http_origin(request.url).empty()) {
      response.failure = "a redirect to something that is no http or https address";
      response.is_final = true;
      return response;
    }
  }
  HttpResponse response;
  response.url = request.url;
  response.failure = fmt::format("more than {} redirects", kMaxRedirects);
  response.is_final = true;
  return response;
}

std::string http_origin(const std::string& text) {
  const Url url(curl_url());
  if (curl_url_set(url.get(), CURLUPART_URL, text.c_str(), 0) != CURLUE_OK) return "";
  const std::string scheme = lower(part(url.get(), CURLUPART_SCHEME, 0));
  if (scheme != "http" && scheme != "https") return "";
  return fmt::format("{}://{}:{}", scheme, lower(part(url.get(), CURLUPART_HOST, 0)),
                     part(url.get(), CURLUPART_PORT, CURLU_DEFAULT_PORT));
}

std::string http_resolve(const std::string& base, const std::string& location) {
  const Url url(curl_url());
  if (curl_url_set(url.get(), CURLUPART_URL, base.c_str(), 0) != CURLUE_OK ||
      curl_url_set(url.get(), CURLUPART_URL, location.c_str(), CURLU_URLENCODE) != CURLUE_OK)
    return "";
  return part(url.get(), CURLUPART_URL, 0);
}

std::string http_quote(const std::string& text, const std::string& safe) {
  std::string quoted;
  for (const char c : text) {
    const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (is_plain || std::string("_.-~").find(c) != std::string::npos || safe.find(c) != std::string::npos) {
      quoted += c;
    } else {
      quoted += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return quoted;
}

void throw_if_stopped(const std::string& what) {
  const int signal = StopSignals::received();
  if (signal == 0) return;
  throw Error(signal == SIGINT ? ExitCode::kInterrupted : ExitCode::kTerminated,
              fmt::format("{}: stopped by signal {}; hint: run again: a download continues", what, signal));
}

bool HttpTries::again(const HttpResponse& response) {
  throw_if_stopped(what_);
  ++num_failed_;
  if (!response.is_temporary() || num_failed_ >= settings_.num_tries) return false;
  if (response.retry_after_seconds > kMaxAskedSeconds) return false;  // rather end now than sit there for hours
  const double doubled = settings_.retry_seconds * std::pow(2.0, num_failed_ - 1);
  const double seconds = std::max(std::min(doubled, kMaxWaitSeconds), response.retry_after_seconds);
  log::warning("hub", "{}: got {}; trying again in {:g} s ({} of {})", what_, response.text(), seconds, num_failed_ + 1,
               settings_.num_tries);
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (Clock::now() < end) {
    throw_if_stopped(what_);
    std::this_thread::sleep_for(
        std::min<std::chrono::duration<double>>(end - Clock::now(), std::chrono::milliseconds(100)));
  }
  return true;
}

}  // namespace dfm::formats
