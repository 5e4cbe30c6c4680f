#pragma once
// What a training step computes: from samples to the sum of the loss and its gradients. The sums over all ranks do not
// depend on how samples are packed into rows or spread over ranks, but for the order of summation.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <vector>

#include "dfm/data/loader.h"
#include "dfm/diffusion/edm.h"
#include "dfm/models/dit/dit.h"
#include "dfm/models/patch.h"
#include "dfm/train/config.h"

namespace dfm::train {

// This rank's part of a packed row on the device, ready for the model. Legend: T this rank's tokens.
struct TrainRow {
  models::DitInput input;
  diffusion::NoisedRow noised;
  at::Tensor x0_TC;
  std::vector<double> sigmas;
  std::int64_t num_tokens = 0;        // of the whole row, real ones; its length is input.tokens.length
  std::vector<std::int64_t> members;  // indices into LoadedStep::samples, a segment each
  std::vector<std::int64_t> token_lengths, text_lengths;  // of the whole row
};

struct StepSettings {
  diffusion::DiffusionConfig diffusion;
  std::uint64_t seed = 1234;
  at::Device device = at::kCPU;
  at::ScalarType compute_dtype = at::kFloat;  // float32, bfloat16 or float64
  // Rows as long as the plan pads them, so that shapes repeat on a GPU. On a CPU padding is only work.
  bool has_padding = true;
  parallel::Parallel parallel = {};
};

// Builds rows; keeps token positions by shape, so that a data set of few sizes costs nothing.
class RowBuilder {
 public:
  RowBuilder(const models::DitConfig& model, const StepSettings& settings);
  // x0 = sigma_data * patchify(latent); noise of element token * channels + channel of each sample's stream position;
  // sigma and text dropout per sample; a dropped text is a segment without rows. Of tokens only this rank's are made.
  [[nodiscard]] TrainRow build(const data::LoadedStep& step, const data::Row& row);

 private:
  struct Part;
  const at::Tensor& positions_of(const models::LatentShape& shape);
  std::vector<Part> parts_of(const TrainRow& row) const;
  models::DitConfig model_;
  StepSettings settings_;
  std::map<std::vector<std::int64_t>, at::Tensor> positions_;
};

struct RowLoss {
  at::Tensor sum;         // over this rank's real tokens of the row, on the device
  at::Tensor segments_N;  // the same of each sample
};
// Forward, and backward with the sum of the loss: gradients are left in the parameters' grad.
RowLoss forward_backward(const models::Dit& model, const TrainRow& row);

}  // namespace dfm::train
