#pragma once
// What generate computes with: the DiT and the encoders of the data set that it was trained on.
#include <memory>
#include <string>

#include "dfm/generate/options.h"
#include "dfm/models/dit/dit.h"
#include "dfm/models/encoders.h"
#include "dfm/models/patch.h"
#include "dfm/parallel/parallel.h"

namespace dfm::generate {

struct Model {
  std::unique_ptr<models::Dit> dit;
  std::unique_ptr<models::VideoTokenizer> tokenizer;
  std::unique_ptr<models::TextEncoder> text_encoder;
  bool has_card = false;  // false: the builtin encoders were taken
  double card_fps = 0;    // the data set's most common; 0: unknown
  std::string where;
  models::LatentShape shape;  // of what the options ask for
};

// Each rank has the whole model; `context`: the ranks that share a video's tokens.
Model load_model(const GenerateOptions& options, at::Device device, const comm::GroupPtr& context);

// Says what was loaded.
void describe(const Model& model);

}  // namespace dfm::generate
