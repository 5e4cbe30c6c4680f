#pragma once
// `dfm generate`: prompts and a checkpoint in, clips (or pictures, for one frame) out.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dfm/generate/options.h"

namespace dfm::generate {

struct RunContext {
  at::Device device = at::kCPU;
  int rank = 0;  // prompt i is made by rank i % world_size
  int world_size = 1;
};

struct GeneratedFile {
  std::filesystem::path path;
  std::string prompt;
  std::int64_t height = 0, width = 0, frames = 0;
  double fps = 0;
  double seconds = 0;  // that it took
};

// Loads the checkpoint's weights and the encoders of its data set, makes this rank's prompts one after the other (the
// noise of prompt i is stream i of the seed, so the same seed gives the same file) and writes each as
// DIR/idx=I_rank=R_NAME.mp4, or .png for one frame, whole or not at all. Computes in bfloat16 on a GPU, float32 on a
// CPU. Errors: ConfigError for sizes the model cannot make, CheckpointError for the weights, DataError for a result
// that is not finite.
std::vector<GeneratedFile> run(const GenerateOptions& options, const RunContext& context);

}  // namespace dfm::generate
