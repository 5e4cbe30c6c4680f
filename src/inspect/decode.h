#pragma once
// Samples of a data set as pictures.
#include <ATen/core/Tensor.h>

#include <vector>

#include "dfm/data/card.h"
#include "dfm/inspect/options.h"
#include "dfm/models/encoders.h"
#include "inspect/facts.h"
#include "inspect/shards.h"

namespace dfm::inspect {

// Decodes samples into options.decode: a contact sheet (a clip shows its first, middle and last frame) or one clip.
// Says what was written.
Facts decode_samples(const std::vector<TarSample>& samples, const data::DatasetCard& card,
                     const InspectOptions& options, at::Device device);

}  // namespace dfm::inspect
