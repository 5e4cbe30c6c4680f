#pragma once
// What generate computes with: the weights that --checkpoint names, the encoders of the data set that they were trained
// on, and the shape of the latent that the options ask for.
#include <memory>
#include <string>

#include "dfm/data/latent_scale.h"
#include "dfm/generate/options.h"
#include "dfm/models/dit/dit.h"
#include "dfm/models/encoders.h"
#include "dfm/models/patch.h"
#include "dfm/parallel/parallel.h"
#include "generate/encoders.h"

namespace dfm::generate {

// Known without reading a weight.
struct StoredModel {
  std::filesystem::path weights;
  models::DitConfig config;
  EncoderChoice encoders;
};
StoredModel open_stored_model(const GenerateOptions& options);

// ConfigError or CheckpointError for text rows that the model was not made for.
void require_text_width(const StoredModel& stored, std::int64_t width);

// The latent of a clip of the asked size. `tokenizer` may be null where the checkpoint has a card. ConfigError that
// names the nearest sizes.
models::LatentShape latent_shape(const GenerateOptions& options, const StoredModel& stored,
                                 const models::VideoTokenizer* tokenizer);

// The whole model on this rank; `context`: the ranks that share a video's tokens.
std::unique_ptr<models::Dit> load_dit(const StoredModel& stored, const GenerateOptions& options, at::Device device,
                                      const comm::GroupPtr& context);

// Says what is loaded.
void describe(const StoredModel& stored);

}  // namespace dfm::generate
