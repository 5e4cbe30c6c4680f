#pragma once
// `dfm generate`: prompts and a checkpoint in, clips (or pictures, for one frame) out.
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "dfm/comm/world.h"
#include "dfm/generate/options.h"

namespace dfm::generate {

struct RunContext {
  at::Device device = at::kCPU;
  std::shared_ptr<comm::World> world = comm::World::solo();
};

struct GeneratedFile {
  std::size_t index = 0;  // of the prompt
  std::filesystem::path path;
  std::string prompt;
  std::int64_t height = 0, width = 0, frames = 0;
  double fps = 0;
  double seconds = 0;  // that it took
};

// Downloads the encoders that run() will open, where they are hub ids and not in the cache yet. To be called before the
// ranks meet: a download may take longer than their patience. Also finds out early what is wrong with the checkpoint.
void fetch(const GenerateOptions& options);

// Loads the checkpoint's weights and the encoders of its data set, makes the prompts and writes each as
// DIR/idx=I_rank=R_NAME.mp4, or .png for one frame, whole or not at all. I is the number of the prompt, R the first of
// the ranks that made it: the ranks form groups of cp_size, the tokens of a video lie over a group (or two that share
// the branches of guidance), and prompts are dealt to groups in turn. The noise of prompt i is stream i of the seed,
// so the same seed gives the same video whatever the ranks. Computes in bfloat16 on a GPU, float32 on a CPU, if
// options.precision does not say otherwise.
//
// The encoders are those of the checkpoint's data set, or the options', which must fit what it was trained on. The
// first rank encodes the texts of all prompts, once, and sends them to the others; its text encoder is gone before the
// model is loaded. Pixels go from the tokenizer to the file as they are decoded: none of them waits for the clip's end.
//
// All ranks of the world call it, with the same options; it gives the files that this rank wrote. Errors: ConfigError
// for sizes the model cannot make, for encoders that do not fit the checkpoint and for ranks that do not form such
// groups, CheckpointError for the weights, DataError for a result that is not finite.
std::vector<GeneratedFile> run(const GenerateOptions& options, const RunContext& context);

// On rank 0 a line for each file of all ranks, in the order of the prompts; on other ranks nothing. All ranks call it.
std::vector<std::string> report(const std::vector<GeneratedFile>& files, comm::World& world);

}  // namespace dfm::generate
