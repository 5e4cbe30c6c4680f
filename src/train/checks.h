#pragma once
// What must be true while training, and what is said when it is not.
#include <cstdint>
#include <string>
#include <vector>

#include "dfm/data/loader.h"
#include "dfm/models/dit/dit.h"
#include "dfm/train/step.h"
#include "train/layout.h"

namespace dfm::train {

// Keys of the samples of this rank's rows whose loss is not a number: "000012, 000031 and 4 more", or "".
std::string keys_with_bad_loss(const data::LoadedStep& step, const data::Dataset& dataset,
                               const std::vector<RowLoss>& losses);

// "000012, 000031 and 4 more".
std::string first_few(std::vector<std::string> names, std::size_t most = 8);

// "rank 1: samples 000012; rank 3: samples 000031": what each rank has to say, empty texts left out. All ranks call it.
std::string gather_by_rank(comm::World& world, const std::string& mine);

// InternalError that names parameters and ranks when copies of a parameter that should be equal have other bits than
// the first rank's. All ranks call it.
void check_equal_weights(const models::Dit& model, const Layout& layout, comm::World& world, std::int64_t iteration);

}  // namespace dfm::train
