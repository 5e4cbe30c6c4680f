#pragma once
// Drawn, captioned butterflies: pictures (even items) and clips of nine frames that flap (odd items).
#include <cstdint>
#include <memory>

#include "dfm/data/source.h"

namespace dfm::data {

std::unique_ptr<Source> make_synthetic_butterflies(std::uint64_t seed, std::size_t count);

}  // namespace dfm::data
