#pragma once
// Everything that decides the bytes of a data set, as text: what a stopped run compares before it goes on, and what the
// card keeps. And what the options mean where none is given.
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/data/source.h"
#include "dfm/prepare/options.h"

namespace dfm::prepare {

using Settings = std::map<std::string, std::string>;

std::int64_t short_side_of(const PrepareOptions& options);
std::int64_t num_workers_of(const PrepareOptions& options);
data::SourceOptions source_options(const PrepareOptions& options);
// The default of a source that is weightless itself is builtin. Paths are made absolute: the card outlives this folder.
std::string tokenizer_of(const PrepareOptions& options);
std::string text_encoder_of(const PrepareOptions& options);
std::filesystem::path tokenizer_cache(const PrepareOptions& options);
std::filesystem::path text_encoder_cache(const PrepareOptions& options);

inline constexpr const char* kOfflineFlags = "--tokenizer builtin --text-encoder builtin";

// Runs `body`, which gets a default's files: an error that leaves it says how to do without.
template <typename Body>
auto with_advice(const PrepareOptions& options, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Error& error) {
    const std::string text = error.what();
    const bool is_chosen = options.tokenizer && options.text_encoder;
    if (is_chosen || text.find(kOfflineFlags) != std::string::npos) throw;
    const bool is_tutorial = options.input == PrepareOptions().input;
    throw Error(error.code(), fmt::format("{}; {}: {}{} makes an offline trial set", text,
                                          text.find("hint:") == std::string::npos ? "hint" : "or",
                                          is_tutorial ? "--input FOLDER " : "", kOfflineFlags));
  }
}

// All but "media". `is_on_gpu`: what --precision auto means.
Settings make_settings(const PrepareOptions& options, bool is_on_gpu);
// "media": the number of items and a hash over their names and captions. Reads every caption.
std::string describe_media(const data::Source& source);
// What every rank must see alike, one line a setting; reads no caption.
std::string describe_view(const Settings& settings, const data::Source& source);

// "short_side 256, now 512; fps 24, now each clip's own"; "" when they are equal.
std::string describe_differences(const Settings& before, const Settings& now);

}  // namespace dfm::prepare
