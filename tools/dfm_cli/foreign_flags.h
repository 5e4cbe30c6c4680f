#pragma once
// Flags of DFM's scripts: other names for ours, and those without a meaning here.
#include "dfm/config/merge.h"

namespace dfm::cli {

const config::ForeignTable& prepare_foreign_flags();
const config::ForeignTable& generate_foreign_flags();

}  // namespace dfm::cli
