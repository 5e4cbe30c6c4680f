#pragma once
// Splitting a caption into words for the builtin text encoder. Its rules are part of prepared data sets: changing them
// changes every text row.
#include <string>
#include <string_view>
#include <vector>

namespace dfm::text {

// Words are the longest runs of letters and digits; ASCII letters are lower-cased. Every character beyond ASCII counts
// as a letter, except spaces and punctuation (general, Latin-1, CJK and full-width) and bytes that are not UTF-8, which
// separate like ASCII punctuation does. Never cuts a character. Example: "A blue-winged Moth's" gives a, blue, winged,
// moth, s.
std::vector<std::string> split_words(std::string_view text);

}  // namespace dfm::text
