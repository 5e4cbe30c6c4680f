#pragma once
// What the hub's refusals mean for the user.
#include <string>

#include "dfm/formats/hub.h"
#include "formats/http.h"

namespace dfm::formats {

// "hub model google-t5/t5-small: config.json", "hub dataset a/b@v1: list of files"
std::string hub_name(const HubRepo& repo, const std::string& file);

enum class HubAnswer { kFile, kNoEntry, kNoRevision, kRefused /* or no such repository */, kTemporary, kUnreachable };
HubAnswer classify(const HttpResponse& response);

// Throws the DataError for an answer that is not the file. `num_tries` > 1 is told.
[[noreturn]] void throw_hub_error(const HubSettings& settings, const HubRepo& repo, const std::string& what,
                                  const HttpResponse& response, int num_tries);

}  // namespace dfm::formats
