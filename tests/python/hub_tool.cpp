// The hub as C++ sees it, for hub_shares_cache.py:
//   hub_tool fetch|fetch-if-there model|dataset ID[@REVISION] FILE...    prints a path a line, or "none"
//   hub_tool list model|dataset ID[@REVISION]                            prints a name a line
//   hub_tool http-get URL MAX_BYTES                                      prints the bytes
// The environment decides as in dfm; HUB_TOOL_TRIES and HUB_TOOL_RETRY_SECONDS shorten the waiting.
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/formats/hub.h"

namespace {

using dfm::formats::Hub;
using dfm::formats::HubRepo;
using dfm::formats::HubSettings;

HubRepo repo_from(const std::string& kind, const std::string& text) {
  HubRepo repo;
  repo.kind = kind == "dataset" ? HubRepo::Kind::kDataset : HubRepo::Kind::kModel;
  const auto at = text.find('@');
  repo.id = text.substr(0, at);
  if (at != std::string::npos) repo.revision = text.substr(at + 1);
  return repo;
}

void run(const std::vector<std::string>& arguments) {
  HubSettings settings = HubSettings::from_environment();
  if (const char* tries = std::getenv("HUB_TOOL_TRIES")) settings.num_tries = std::atoi(tries);
  if (const char* seconds = std::getenv("HUB_TOOL_RETRY_SECONDS")) settings.retry_seconds = std::atof(seconds);
  const std::string& what = arguments.at(0);
  if (what == "http-get") {
    const std::string bytes = dfm::formats::http_get(arguments.at(1), settings, std::stoull(arguments.at(2)));
    std::fwrite(bytes.data(), 1, bytes.size(), stdout);
    return;
  }
  const Hub hub(settings);
  const HubRepo repo = repo_from(arguments.at(1), arguments.at(2));
  if (what == "list") {
    for (const std::string& name : hub.list(repo)) fmt::print("{}\n", name);
    return;
  }
  for (std::size_t i = 3; i < arguments.size(); ++i) {
    if (what == "fetch") {
      fmt::print("{}\n", hub.fetch(repo, arguments[i]).string());
    } else {
      const auto path = hub.fetch_if_there(repo, arguments[i]);
      fmt::print("{}\n", path ? path->string() : "none");
    }
  }
}

}  // namespace

int main(int count, char** values) {
  try {
    run({values + 1, values + count});
    return 0;
  } catch (const dfm::Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return static_cast<int>(error.code());
  }
}
