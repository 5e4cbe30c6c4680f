#pragma once
// From the configuration and the layout to what the parts of a run are made with.
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dfm/data/loader.h"
#include "dfm/parallel/distributed_optimizer.h"
#include "dfm/train/config.h"
#include "train/layout.h"

namespace dfm::train {

Precision resolve_precision(Precision wanted, at::Device device);
at::ScalarType compute_dtype(Precision precision);
parallel::OptimizerSettings optimizer_settings(const TrainConfig& config);
// `consumed`: samples of earlier steps.
data::LoaderOptions loader_options(const TrainConfig& config, std::int64_t consumed, const Layout& layout,
                                   at::Device device);

}  // namespace dfm::train
