#pragma once
// `dfm inspect`: what is in a data set, a sample, a checkpoint, a file of weights; decoded samples as a contact sheet
// or MP4.
#include <ATen/core/Tensor.h>

#include <string>

#include "dfm/base/error.h"
#include "dfm/inspect/options.h"

namespace dfm::inspect {

struct Report {
  std::string text;  // for people, or with options.json one JSON object with the same facts
  // What is found damaged: the report says what is there nevertheless. kOk: nothing.
  ExitCode code = ExitCode::kOk;
  std::string problem;
};

// Writes the pictures that the options ask for. What is no data set, checkpoint or file of weights is a DataError.
Report run(const InspectOptions& options, at::Device device);

}  // namespace dfm::inspect
