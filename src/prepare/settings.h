#pragma once
// Everything that decides the bytes of a data set, as text: what a stopped run compares before it goes on, and what the
// card keeps.
#include <cstdint>
#include <map>
#include <string>

#include "dfm/data/source.h"
#include "dfm/prepare/options.h"

namespace dfm::prepare {

using Settings = std::map<std::string, std::string>;

std::int64_t short_side_of(const PrepareOptions& options);

// All but "media".
Settings make_settings(const PrepareOptions& options, const data::Source& source);
// "media": the number of items and a hash over their names and captions. Reads every caption.
std::string describe_media(const data::Source& source);
// What every rank must see alike, one line a setting; reads no caption.
std::string describe_view(const Settings& settings, const data::Source& source);

// "short_side 256, now 512; fps 24, now each clip's own"; "" when they are equal.
std::string describe_differences(const Settings& before, const Settings& now);

}  // namespace dfm::prepare
