#include "generate/model.h"

#include <ATen/ATen.h>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "generate/frames.h"
#include "generate/weights.h"

namespace dfm::generate {

// The encoders are made, and checked against the weights' shapes, before any weight is read.
Model load_model(const GenerateOptions& options, at::Device device, const comm::GroupPtr& context) {
  Model model;
  const std::filesystem::path weights = find_weights(options.checkpoint);
  model.where = weights.string();
  StoredFacts facts = stored_facts(weights);
  model.has_card = facts.card.has_value();
  if (!model.has_card) facts.card.emplace();
  model.card_fps = facts.card->fps;
  model.tokenizer = models::make_tokenizer(facts.card->tokenizer, device);
  model.text_encoder = models::make_text_encoder(facts.card->text_encoder, device);

  const checkpoint::TensorFile file(weights);
  models::DitConfig config = infer_config(file.entries(), model.where, facts);
  if (config.in_channels != model.tokenizer->latent_channels()) {
    throw CheckpointError("{}: got a model of {} latent channels, want {} as tokenizer {} has", model.where,
                          config.in_channels, model.tokenizer->latent_channels(), model.tokenizer->name());
  }
  if (config.crossattn_emb_size != model.text_encoder->width()) {
    throw CheckpointError("{}: got a model for text rows of width {}, want {} as text encoder {} has", model.where,
                          config.crossattn_emb_size, model.text_encoder->width(), model.text_encoder->name());
  }
  const std::int64_t k = model.tokenizer->temporal_compression();
  if ((options.num_video_frames - 1) % k != 0) {
    throw ConfigError("num_video_frames: got {}, want 1 + {} n (tokenizer {}); hint: {}", options.num_video_frames, k,
                      model.tokenizer->name(), nearest_frames_hint(options.num_video_frames, k));
  }
  const std::int64_t side = model.tokenizer->spatial_compression() * config.patch_spatial;
  if (options.height % side != 0 || options.width % side != 0) {
    throw ConfigError("height and width: got {}x{}, want multiples of {} (tokenizer {})", options.height, options.width,
                      side, model.tokenizer->name());
  }
  model.shape = {.channels = config.in_channels,
                 .frames = 1 + (options.num_video_frames - 1) / k,
                 .height = options.height / model.tokenizer->spatial_compression(),
                 .width = options.width / model.tokenizer->spatial_compression()};

  parallel::Parallel parallel;
  parallel.context = context;
  // All-to-all sends each token once, p2p its keys and values to every rank.
  parallel.context_comm =
      config.num_attention_heads % context->size() == 0 ? parallel::ContextComm::kA2a : parallel::ContextComm::kP2p;
  config.context_parallel_size = context->size();
  config.cp_comm_type = parallel.context_comm;
  const at::ScalarType dtype = device.is_cuda() ? at::kBFloat16 : at::kFloat;
  model.dit = std::make_unique<models::Dit>(config, dtype, device, /*seed=*/0, parallel);
  model.dit->load(file.read_all(), model.where);
  return model;
}

void describe(const Model& model) {
  if (!model.has_card) {
    log::warning("generate", "{}: no card of a data set beside it; taking the builtin tokenizer and text encoder",
                 model.where);
  }
  const models::DitConfig& config = model.dit->config();
  log::info("generate", "{}: {} layers, hidden size {}, tokenizer {}, text encoder {}", model.where, config.num_layers,
            config.hidden_size, model.tokenizer->name(), model.text_encoder->name());
}

}  // namespace dfm::generate
