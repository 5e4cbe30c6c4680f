// The environment, read as huggingface_hub reads it, and the names that the hub allows.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "dfm/formats/hub.h"
#include "formats/http.h"

namespace dfm::formats {
namespace {

namespace fs = std::filesystem;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool is_true(std::string value) {
  std::transform(value.begin(), value.end(), value.begin(), [](unsigned char c) { return std::toupper(c); });
  return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
}

std::string home() {
  if (const std::string value = environment("HOME"); !value.empty()) return value;
  return "/";  // then the message on a cache that cannot be made names HF_HUB_CACHE
}

// `~/`, `$NAME` and `${NAME}`; a variable that is not set stays as it is written.
fs::path expanded(std::string text) {
  if (text == "~" || text.starts_with("~/")) text = home() + text.substr(1);
  std::string result;
  for (std::size_t i = 0; i < text.size();) {
    const bool has_braces = text.compare(i, 2, "${") == 0;
    std::size_t end = i + (has_braces ? 2 : 1);
    const std::size_t start = end;
    while (text[i] == '$' && end < text.size() &&
           (std::isalnum(static_cast<unsigned char>(text[end])) || text[end] == '_'))
      ++end;
    const std::string name = text.substr(start, end - start);
    const bool is_variable =
        end > start && (!has_braces || (end < text.size() && text[end] == '}')) && std::getenv(name.c_str()) != nullptr;
    if (has_braces && end < text.size()) ++end;
    result += is_variable ? environment(name.c_str()) : text.substr(i, end - i);
    i = end;
  }
  return result;
}

fs::path path_from(const char* name, const fs::path& otherwise) {
  const std::string value = environment(name);
  return value.empty() ? otherwise : expanded(value);
}

double seconds_from(const char* name, double otherwise) {
  const std::string text = environment(name);
  if (text.empty()) return otherwise;
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (*end != '\0' || !std::isfinite(value) || value <= 0 || value > 1e6)
    throw ConfigError("environment variable {}: got '{}', want a number of seconds", name, text);
  return value;
}

// Never in a message: the token itself.
std::string cleaned_token(std::string token, const std::string& origin) {
  token.erase(std::remove_if(token.begin(), token.end(), [](char c) { return c == '\r' || c == '\n'; }), token.end());
  const auto first = token.find_first_not_of(" \t");
  if (first == std::string::npos) return "";
  token = token.substr(first, token.find_last_not_of(" \t") - first + 1);
  if (!std::all_of(token.begin(), token.end(), [](char c) { return c > ' ' && c < '\x7f'; }))
    throw ConfigError("{}: got a token with blanks or characters beyond ASCII, want one like hf_...", origin);
  return token;
}

std::string find_token(const fs::path& home_folder) {
  if (is_true(environment("HF_HUB_DISABLE_IMPLICIT_TOKEN"))) return "";
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    // The first that is set counts, even if it is blank: so does the Python client.
    if (const std::string value = environment(name); !value.empty()) {
      if (std::string token = cleaned_token(value, name); !token.empty()) return token;
      break;
    }
  }
  const fs::path path = path_from("HF_TOKEN_PATH", home_folder / "token");
  std::error_code error;
  if (!fs::exists(path, error)) return "";
  std::ifstream file(path);
  if (!file) {
    log::warning("hub", "{}: cannot be read; going on without a token", path.string());
    return "";
  }
  return cleaned_token(std::string(std::istreambuf_iterator<char>(file), {}), path.string());
}

bool is_id_part(const std::string& part) {
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
  return !part.empty() && is_word(part.front()) && is_word(part.back()) &&
         std::all_of(part.begin(), part.end(), [&](char c) { return is_word(c) || c == '-' || c == '.'; });
}

}  // namespace

HubSettings HubSettings::from_environment(const fs::path& cache) {
  const fs::path base = path_from("XDG_CACHE_HOME", fs::path(home()) / ".cache");
  const fs::path home_folder = path_from("HF_HOME", base / "huggingface");
  HubSettings settings;
  settings.cache =
      !cache.empty() ? cache : path_from("HF_HUB_CACHE", path_from("HUGGINGFACE_HUB_CACHE", home_folder / "hub"));
  if (std::string endpoint = environment("HF_ENDPOINT"); !endpoint.empty()) {
    endpoint.erase(endpoint.find_last_not_of('/') + 1);
    if (http_origin(endpoint).empty())
      throw ConfigError("environment variable HF_ENDPOINT: got '{}', want an address like https://huggingface.co",
                        endpoint);
    settings.endpoint = endpoint;
  }
  const std::string offline = environment("HF_HUB_OFFLINE");
  settings.offline = is_true(offline.empty() ? environment("TRANSFORMERS_OFFLINE") : offline);
  settings.token = find_token(home_folder);
  settings.timeout_seconds = seconds_from("HF_HUB_DOWNLOAD_TIMEOUT", settings.timeout_seconds);
  settings.metadata_timeout_seconds = seconds_from("HF_HUB_ETAG_TIMEOUT", settings.metadata_timeout_seconds);
  settings.show_progress = !is_true(environment("HF_HUB_DISABLE_PROGRESS_BARS"));
  settings.use_symlinks = !is_true(environment("HF_HUB_DISABLE_SYMLINKS"));
  return settings;
}

bool is_hub_id(const std::string& text) {
  constexpr std::size_t kMaxName = 96;
  const auto slash = text.find('/');
  const std::string name = slash == std::string::npos ? text : text.substr(slash + 1);
  return (slash == std::string::npos || is_id_part(text.substr(0, slash))) && is_id_part(name) &&
         name.size() <= kMaxName && text.size() <= 2 * kMaxName && text.find("--") == std::string::npos &&
         text.find("..") == std::string::npos && !text.ends_with(".git");
}

}  // namespace dfm::formats
