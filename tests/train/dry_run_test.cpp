#include "dfm/train/dry_run.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "dfm/models/dit/dit.h"
#include "support/errors.h"
#include "support/temp_folder.h"
#include "train/tiny_run.h"

namespace dfm::train {
namespace {

TrainConfig config(std::int64_t tensor, std::int64_t context) {
  TrainConfig config;
  config.model.num_layers = 2;
  config.model.hidden_size = 64;
  config.model.num_attention_heads = 4;
  config.model.crossattn_emb_size = 32;
  config.model.tensor_model_parallel_size = tensor;
  config.model.context_parallel_size = context;
  config.dataset.task_encoder_seq_length = 1024;
  return config;
}

TEST(DryRun, CountsTheParametersOfTheModel) {
  const TrainConfig one = config(1, 1);
  const models::Dit dit(one.model, at::kFloat, at::kCPU, 1);
  std::int64_t count = 0, replicated = 0;
  for (const parallel::Parameter& parameter : dit.placed_parameters()) {
    count += parameter.tensor.numel();
    if (parameter.split_dim < 0) replicated += parameter.tensor.numel();
  }
  EXPECT_EQ(dry_run(one, 1, true, {}).parameters, count);
  EXPECT_EQ(dry_run(one, 1, true, {}).rank_parameters, count);
  EXPECT_EQ(dry_run(config(4, 1), 4, true, {}).rank_parameters, replicated + (count - replicated) / 4);
}

TEST(DryRun, MemoryFollowsTheLayout) {
  const DryRun one = dry_run(config(1, 1), 1, true, {});
  EXPECT_EQ(one.memory.weights, 2 * one.parameters);
  EXPECT_EQ(one.memory.gradients, 4 * one.parameters);
  EXPECT_EQ(one.memory.optimizer, 12 * one.parameters);
  EXPECT_EQ(one.memory.activations, 2 * 1024 * 64 * 26 * 2);

  const DryRun data = dry_run(config(1, 1), 4, true, {});
  EXPECT_EQ(data.memory.optimizer, 3 * one.parameters);
  EXPECT_EQ(data.memory.weights, one.memory.weights);
  TrainConfig whole = config(1, 1);
  whole.ddp.use_distributed_optimizer = false;
  EXPECT_EQ(dry_run(whole, 4, true, {}).memory.optimizer, one.memory.optimizer);

  EXPECT_EQ(dry_run(config(1, 4), 4, true, {}).memory.activations, one.memory.activations / 4);
  TrainConfig sequence = config(4, 1);
  EXPECT_GT(dry_run(sequence, 4, true, {}).memory.activations, one.memory.activations / 4);
  sequence.model.sequence_parallel = true;
  EXPECT_EQ(dry_run(sequence, 4, true, {}).memory.activations, one.memory.activations / 4);
  TrainConfig recompute = config(1, 1);
  recompute.model.recompute_granularity = models::Recompute::kFull;
  EXPECT_EQ(dry_run(recompute, 1, true, {}).memory.activations, 1024 * 64 * (26 + 2) * 2);
}

TEST(DryRun, BytesFollowTheLayout) {
  const CommunicationEstimate one = dry_run(config(1, 1), 1, true, {}).communication;
  EXPECT_EQ(one.tensor + one.context + one.gradients + one.parameters, 0);
  const DryRun data = dry_run(config(1, 1), 4, true, {});
  EXPECT_EQ(data.communication.gradients, 3 * data.parameters);       // 3/4 of 4 bytes each
  EXPECT_EQ(data.communication.parameters, 3 * data.parameters / 2);  // 3/4 of 2 bytes each
  const DryRun tensor = dry_run(config(2, 1), 2, true, {});
  EXPECT_EQ(tensor.communication.tensor, 2 * 6 * 1024 * 64 * 2);  // layers x all-reduces x tokens x width x bytes
  EXPECT_EQ(tensor.communication.context, 0);
  TrainConfig a2a = config(1, 2);
  a2a.model.cp_comm_type = parallel::ContextComm::kA2a;
  EXPECT_EQ(dry_run(a2a, 2, true, {}).communication.context, 2 * 2 * 4 * 512 * 64 * 2 / 2);
  // Backward gathers the tokens before each column layer again: 15 parts where 12 are without.
  TrainConfig sequence = config(2, 1);
  sequence.model.sequence_parallel = true;
  EXPECT_EQ(dry_run(sequence, 2, true, {}).communication.tensor, tensor.communication.tensor / 4 * 5);
}

TEST(DryRun, CountsTheKeysThatTravel) {
  const TrainConfig p2p = config(1, 4);
  const auto bytes = [](const TrainConfig& one, const std::vector<std::int64_t>& lengths) {
    return dry_run(one, 4, true, lengths).communication.context;
  };
  constexpr std::int64_t kTokenBytes = 2 * 2 * 64 * 2;  // layers x keys and values x width x bytes
  // One sample over four ranks of 256: keys to three ranks, again in backward, and the gradients of theirs.
  EXPECT_EQ(bytes(p2p, {}), kTokenBytes * 3 * 256 * 3);
  EXPECT_EQ(bytes(p2p, {1024}), bytes(p2p, {}));
  // Samples that end where a rank's part ends do not travel.
  EXPECT_EQ(bytes(p2p, {256, 256, 256, 256}), 0);
  // 300 and 256: the second rank has 44 of the first and 212 of the second, of which the third has 44.
  EXPECT_EQ(bytes(p2p, {300, 256}), kTokenBytes * (44 * 2 + 256 + 212 * 2 + 44));
  TrainConfig again = p2p;
  again.model.recompute_granularity = models::Recompute::kFull;
  EXPECT_EQ(bytes(again, {}), kTokenBytes * 3 * 256 * 4);
}

TEST(DryRun, PlansTheRowsOfAStep) {
  const DryRun run = dry_run(config(1, 1), 2, true, {1000, 900, 100, 20});
  EXPECT_EQ(run.rank_rows, 1);
  EXPECT_EQ(run.row_tokens, 1024);
  EXPECT_EQ(dry_run(config(1, 1), 1, true, {1000, 900, 100, 20}).rank_rows, 2);
}

TEST(DryRun, TakesLengthsAndWidthsFromTheDataSet) {
  const test::TempFolder folder;
  test::write_tiny_dataset(folder.path(), 20);
  TrainConfig one = config(1, 1);
  one.dataset.path = folder.path();
  one.train.global_batch_size = 20;  // all of them
  std::vector<std::int64_t> lengths = follow_dataset_for_dry_run(one);
  EXPECT_EQ(one.model.crossattn_emb_size, test::kTextWidth);
  std::sort(lengths.begin(), lengths.end());
  EXPECT_EQ(lengths.size(), 20U);
  EXPECT_EQ(lengths.front(), 4);
  EXPECT_EQ(lengths.back(), 48);
}

TEST(DryRun, RefusesALayoutThatTheWorldDoesNotAllow) {
  const std::string text = test::error_of([] { dry_run(config(2, 2), 6, true, {}); });
  EXPECT_NE(text.find("6"), std::string::npos) << text;
}

}  // namespace
}  // namespace dfm::train
