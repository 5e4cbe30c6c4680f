#pragma once
// Which files an encoder's name stands for: `builtin` aside, a folder, a file, or a repository of the hub, whose files
// are downloaded if they are not in the cache.
#include <filesystem>
#include <string>

#include "models/cosmos_tokenizer/cosmos_tokenizer.h"

namespace dfm::models {

// What a name is recorded as: a hub id as given, a path as canonical absolute path. ConfigError: neither.
struct EncoderPlace {
  std::string name;
  std::filesystem::path path;  // empty: on the hub
};
EncoderPlace place_of(const std::string& name, const char* what);

struct TextEncoderFiles {
  std::string name;
  std::filesystem::path config, tokenizer, weights;
};
// DataError: files that are missing; failures of the hub.
TextEncoderFiles find_text_encoder(const EncoderPlace& place, const std::filesystem::path& hub_cache);
CosmosFiles find_tokenizer(const EncoderPlace& place, const std::filesystem::path& hub_cache);

}  // namespace dfm::models
