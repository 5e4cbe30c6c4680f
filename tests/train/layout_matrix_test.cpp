// The same training in every layout, over real processes: from weights in which nothing is zero, on pictures and clips,
// losses and every parameter's gradient (before clipping) are those of one rank. Loss alone would not show a wrong
// gradient scale, since Adam divides it away.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "dfm/base/file.h"
#include "dfm/base/hash.h"
#include "dfm/checkpoint/tensor_file.h"
#include "dfm/data/loader.h"
#include "dfm/ops/philox_normal.h"
#include "dfm/parallel/distributed_optimizer.h"
#include "dfm/train/step.h"
#include "support/ranks.h"
#include "train/layout.h"
#include "train/tiny_run.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kGradientSteps = 20, kLossSteps = 100;

struct LayoutCase {
  const char* name;
  std::int64_t tensor = 1, context = 1;
  bool sequence = false;
  parallel::ContextComm context_comm = parallel::ContextComm::kP2p;
  bool zero = true;
  models::Recompute recompute = models::Recompute::kNone;
};

using models::Recompute;
using parallel::ContextComm;

std::vector<LayoutCase> layouts(int world_size) {
  if (world_size == 2) {
    return {{"tp2", 2},
            {"tp2_sp", 2, 1, true},
            {"cp2_a2a", 1, 2, false, ContextComm::kA2a},
            {"cp2_p2p", 1, 2, false, ContextComm::kP2p},
            {"dp2"},
            {"dp2_whole", 1, 1, false, ContextComm::kP2p, false},
            {"tp2_sp_full", 2, 1, true, ContextComm::kP2p, true, Recompute::kFull},
            {"cp2_p2p_selective", 1, 2, false, ContextComm::kP2p, true, Recompute::kSelective}};
  }
  if (world_size == 4) {
    return {{"tp4", 4},
            {"tp4_sp", 4, 1, true},
            {"cp4_a2a", 1, 4, false, ContextComm::kA2a},
            {"cp4_p2p", 1, 4, false, ContextComm::kP2p},
            {"dp4"},
            {"dp4_whole", 1, 1, false, ContextComm::kP2p, false},
            {"tp2_cp2", 2, 2},
            {"tp2_sp_cp2_a2a_full", 2, 2, true, ContextComm::kA2a, true, Recompute::kFull},
            {"tp2_dp2", 2, 1},
            {"tp2_sp_dp2_selective", 2, 1, true, ContextComm::kP2p, true, Recompute::kSelective},
            {"cp2_dp2", 1, 2}};
  }
  return {{"tp2_cp2_dp2", 2, 2}, {"tp2_sp_cp2_a2a_dp2", 2, 2, true, ContextComm::kA2a}};
}

TrainConfig base_config(const fs::path& folder, const std::string& precision) {
  TrainConfig config = test::tiny_config(folder / "data", folder / "run");
  config.model.hidden_size = 64;
  config.model.num_attention_heads = 4;
  config.model.crossattn_emb_size = test::kTextWidth;
  config.mixed_precision = precision == "fp64" ? Precision::kFp64 : Precision::kFp32;
  config.train.global_batch_size = 7;
  config.train.train_iters = kLossSteps;
  config.scheduler.lr_decay_iters = kLossSteps;
  config.dataset.task_encoder_seq_length = 64;  // several rows a step, also on each of four data ranks
  config.ddp.bucket_size = 30000;               // many buckets
  config.optimizer.clip_grad = 0.5;             // so that it clips
  config.checkpoint.pretrained_checkpoint = folder / "start.pt";
  return config;
}

TrainConfig apply(TrainConfig config, const LayoutCase& layout) {
  config.model.tensor_model_parallel_size = layout.tensor;
  config.model.context_parallel_size = layout.context;
  config.model.sequence_parallel = layout.sequence;
  config.model.cp_comm_type = layout.context_comm;
  config.model.recompute_granularity = layout.recompute;
  config.ddp.use_distributed_optimizer = layout.zero;
  return config;
}

// Weights in which nothing is zero and no norm's weight is one.
void write_start(const TrainConfig& config) {
  models::NamedTensors weights = models::initial_parameters(config.model, at::kFloat, at::kCPU, 5);
  for (auto& [name, tensor] : weights) {
    at::Tensor noise = at::empty_like(tensor);
    ops::philox_normal_(noise, 6, fnv1a64(name), Purpose::kSynthetic);
    tensor.add_(noise, name.find("layernorm") != std::string::npos ? 0.2 : 0.05);
  }
  checkpoint::write_tensor_file(config.checkpoint.pretrained_checkpoint, weights);
}

using OnGradients = std::function<void(std::int64_t step, parallel::DistributedOptimizer& optimizer)>;
using Mutate = std::function<void(std::vector<parallel::Parameter>& parameters)>;

// The training loop without its trimmings: what Trainer does with the same parts, with the gradients in the open.
void train_steps(const TrainConfig& config, comm::World& world, const OnGradients& on_gradients, const Mutate& mutate,
                 checkpoint::NamedTensors* parameters) {
  const Layout layout = make_layout(config.model, world);
  const at::ScalarType dtype = config.mixed_precision == Precision::kFp64 ? at::kDouble : at::kFloat;
  models::Dit model(config.model, dtype, at::kCPU, config.rng.seed, layout.parallel);
  model.load(checkpoint::TensorFile(config.checkpoint.pretrained_checkpoint).read_all(), "start");
  std::vector<parallel::Parameter> placed = model.placed_parameters();
  if (mutate) mutate(placed);
  parallel::OptimizerSettings settings;
  settings.weight_decay = config.optimizer.weight_decay;
  settings.clip_grad = config.optimizer.clip_grad;
  settings.use_distributed_optimizer = config.ddp.use_distributed_optimizer;
  settings.bucket_size = config.ddp.bucket_size.value_or(0);
  parallel::DistributedOptimizer optimizer(placed, layout.reduce, settings);
  model.set_before_stage([&](int stage) { optimizer.wait_for_parameters(stage); });

  data::LoaderOptions options;
  options.seed = config.rng.seed;
  options.limits.max_tokens = config.dataset.task_encoder_seq_length;
  options.global_batch_size = config.train.global_batch_size;
  options.data_rank = layout.at.data;
  options.num_data_ranks = layout.sizes.data;
  data::StepLoader loader(data::Dataset::open(config.dataset.path), options);
  RowBuilder rows(config.model,
                  StepSettings{config.diffusion, config.rng.seed, at::kCPU, dtype, false, layout.parallel});
  for (std::int64_t step = 1; step <= kGradientSteps; ++step) {
    const data::LoadedStep loaded = loader.next();
    optimizer.zero_gradients();
    double tokens = 0;
    for (std::size_t i = 0; i < loaded.rows.size(); ++i) {
      const TrainRow row = rows.build(loaded, loaded.rows[i]);
      if (i + 1 == loaded.rows.size()) optimizer.begin_last_row();
      forward_backward(model, row);
      if (layout.counts_rows()) tokens += static_cast<double>(row.num_tokens);
    }
    optimizer.reduce_gradients();
    sum_over_ranks(world, at::kCPU, {&tokens, 1});
    on_gradients(step, optimizer);
    optimizer.step(1e-3, tokens, step);
  }
  optimizer.wait_for_parameters();
  if (parameters == nullptr) return;
  const fs::path file = config.checkpoint.save.string() + ".parameters";
  checkpoint::write_sharded_tensor_file(file, optimizer.weights(), world);
  *parameters = checkpoint::TensorFile(file).read_all();
}

// The largest difference of each tensor relative to its largest value, the worst of all; its name.
struct Difference {
  double size = 0;
  std::string name;
};
Difference difference(const checkpoint::NamedTensors& got, const checkpoint::NamedTensors& want) {
  Difference worst;
  if (got.size() != want.size()) return {INFINITY, "number of tensors"};
  std::map<std::string, at::Tensor> by_name(got.begin(), got.end());
  for (const auto& [name, tensor] : want) {
    const auto found = by_name.find(name);
    if (found == by_name.end() || found->second.sizes() != tensor.sizes()) return {INFINITY, name};
    const double largest = tensor.abs().max().item<double>();
    if (largest == 0) return {INFINITY, name + " is zero in the reference"};
    const double size = (found->second - tensor).abs().max().item<double>() / largest;
    if (!(size <= worst.size)) worst = {size, name};
  }
  return worst;
}

std::string gradient_file(const fs::path& folder, const std::string& precision, std::int64_t step) {
  return (folder / fmt::format("gradients_{}_{}.pt", precision, step)).string();
}

// What one rank gives: gradients of steps 1 and 20, parameters after 20, losses of 100 steps.
void write_reference(const fs::path& folder, const std::string& precision) {
  TrainConfig config = base_config(folder, precision);
  write_start(config);
  const auto world = comm::World::solo();
  checkpoint::NamedTensors parameters;
  train_steps(
      config, *world,
      [&](std::int64_t step, parallel::DistributedOptimizer& optimizer) {
        if (step != 1 && step != kGradientSteps) return;
        checkpoint::write_sharded_tensor_file(gradient_file(folder, precision, step), optimizer.gradients(), *world);
      },
      nullptr, &parameters);
  checkpoint::write_tensor_file(gradient_file(folder, precision, 0), parameters);
}

// "" or what differs from the reference, with the figures.
std::string compare(const TrainConfig& config, comm::World& world, const fs::path& folder, const std::string& precision,
                    const Mutate& mutate = nullptr) {
  const bool is_double = precision == "fp64";
  const double gradient_tolerance = is_double ? 1e-11 : 3e-5;
  std::string text;
  const auto check = [&](const std::string& what, const checkpoint::NamedTensors& got, const std::string& reference,
                         double tolerance) {
    const Difference found = difference(got, checkpoint::TensorFile(reference).read_all());
    if (!(found.size <= tolerance)) text += fmt::format("{}: {} differs by {:.2e}; ", what, found.name, found.size);
  };
  checkpoint::NamedTensors parameters;
  train_steps(
      config, world,
      [&](std::int64_t step, parallel::DistributedOptimizer& optimizer) {
        if (step != 1 && step != kGradientSteps) return;
        const std::string file = config.checkpoint.save.string() + ".gradients";
        checkpoint::write_sharded_tensor_file(file, optimizer.gradients(), world);
        check(fmt::format("gradient of step {}", step), checkpoint::TensorFile(file).read_all(),
              gradient_file(folder, precision, step), gradient_tolerance);
        world.all()->barrier();  // the file is written anew for the next step
      },
      mutate, &parameters);
  if (is_double) check("parameters", parameters, gradient_file(folder, precision, 0), gradient_tolerance);
  return text;
}

RANK_CASE(gradients) {
  const fs::path folder = args.at(0);
  const std::string& precision = args.at(1);
  for (const LayoutCase& layout : layouts(world.size())) {
    TrainConfig config = apply(base_config(folder, precision), layout);
    config.checkpoint.save = folder / fmt::format("{}_{}_{}", layout.name, precision, world.size());
    EXPECT_EQ(compare(config, world, folder, precision), "") << layout.name << " " << precision;
  }
}

// A replicated parameter whose reduction is wrong: each must be seen.
RANK_CASE(mutations) {
  const fs::path folder = args.at(0);
  const LayoutCase layout{"tp2_sp", 2, 1, true};
  for (const char* suffix :
       {"full_self_attention.q_layernorm.weight", "cross_attention.k_layernorm.weight", "adaLN_modulation.1.weight",
        "t_embedder.1.linear_1.weight", "x_embedder.weight", "final_layer_linear.bias"}) {
    TrainConfig config = apply(base_config(folder, "fp64"), layout);
    config.checkpoint.save = folder / "mutated";
    // Taken for whole, a partial gradient gets the weight 1 / TP: halved.
    const std::string found = compare(config, world, folder, "fp64", [&](std::vector<parallel::Parameter>& parameters) {
      int count = 0;
      for (parallel::Parameter& parameter : parameters) {
        if (!parameter.name.ends_with(suffix) || count > 0) continue;
        EXPECT_TRUE(parameter.is_partial) << parameter.name;
        parameter.is_partial = false;
        ++count;
      }
      EXPECT_EQ(count, 1) << suffix;
    });
    EXPECT_NE(found.find("gradient of step 1"), std::string::npos) << suffix << ": " << found;
  }
  // Without sequence parallelism these are whole on each tensor rank: taken for partial they are doubled.
  TrainConfig config = apply(base_config(folder, "fp64"), {"tp2", 2});
  config.checkpoint.save = folder / "mutated";
  const std::string found = compare(config, world, folder, "fp64", [&](std::vector<parallel::Parameter>& parameters) {
    for (parallel::Parameter& parameter : parameters) {
      if (parameter.name == "x_embedder.weight") parameter.is_partial = true;
    }
  });
  EXPECT_NE(found.find("gradient of step 1: x_embedder.weight differs by 1.00e+00"), std::string::npos) << found;
}

std::vector<double> read_losses(const fs::path& file) {
  std::vector<double> losses;
  const at::Tensor stored = checkpoint::TensorFile(file).read("losses");
  losses.assign(stored.const_data_ptr<double>(), stored.const_data_ptr<double>() + stored.numel());
  return losses;
}

std::vector<double> train_losses(TrainConfig config, comm::World& world) {
  RunContext context;
  context.world = std::shared_ptr<comm::World>(&world, [](comm::World*) {});
  config.optimizer.lr = 1e-3;
  config.train.check_weight_hash_across_dp_replicas_interval = 10;
  return test::run_tiny(config, context).losses;
}

RANK_CASE(losses) {
  const fs::path folder = args.at(0);
  const std::string& precision = args.at(1);
  const double tolerance = precision == "fp64" ? 1e-11 : 1e-6;
  const std::vector<double> want = read_losses(folder / ("losses_" + precision + ".pt"));
  for (const LayoutCase& layout : layouts(world.size())) {
    TrainConfig config = apply(base_config(folder, precision), layout);
    config.checkpoint.save = folder / fmt::format("run_{}_{}_{}", layout.name, precision, world.size());
    config.train.train_iters = static_cast<std::int64_t>(want.size());
    const std::vector<double> got = train_losses(config, world);
    ASSERT_EQ(got.size(), want.size());
    double worst = 0;
    for (std::size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - want[i]) / want[i]);
    EXPECT_LE(worst, tolerance) << layout.name << " " << precision;
  }
}

class Layouts : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = std::make_unique<test::TempFolder>();
    test::write_tiny_dataset(shared_->path() / "data", 20);
    for (const char* precision : {"fp32", "fp64"}) {
      write_reference(shared_->path(), precision);
      TrainConfig config = base_config(shared_->path(), precision);
      config.checkpoint.save = shared_->path() / (std::string("one_") + precision);
      if (std::string(precision) == "fp64") config.train.train_iters = kGradientSteps;
      const std::vector<double> losses = train_losses(config, *comm::World::solo());
      checkpoint::write_tensor_file(shared_->path() / (std::string("losses_") + precision + ".pt"),
                                    {{"losses", at::tensor(losses, at::kDouble)}});
    }
  }
  static void TearDownTestSuite() { shared_.reset(); }
  [[nodiscard]] static std::string folder() { return shared_->path().string(); }
  static std::unique_ptr<test::TempFolder> shared_;
};
std::unique_ptr<test::TempFolder> Layouts::shared_;

#ifdef DFM_EIGHT_RANKS
TEST_F(Layouts, GradientsOfEightRanksAreThoseOfOne) {
  test::run_ranks(8, "gradients", {folder(), "fp32"}, {.deadline = std::chrono::seconds(280)});
  test::run_ranks(8, "gradients", {folder(), "fp64"}, {.deadline = std::chrono::seconds(280)});
}
TEST_F(Layouts, LossesOfEightRanksAreThoseOfOne) {
  test::run_ranks(8, "losses", {folder(), "fp32"}, {.deadline = std::chrono::seconds(280)});
}
#else
TEST_F(Layouts, GradientsOfTwoRanksAreThoseOfOne) {
  test::run_ranks(2, "gradients", {folder(), "fp32"});
  test::run_ranks(2, "gradients", {folder(), "fp64"});
}
TEST_F(Layouts, GradientsOfFourRanksAreThoseOfOne) {
  test::run_ranks(4, "gradients", {folder(), "fp32"});
  test::run_ranks(4, "gradients", {folder(), "fp64"});
}
TEST_F(Layouts, LossesOfTwoRanksAreThoseOfOne) {
  test::run_ranks(2, "losses", {folder(), "fp32"});
  test::run_ranks(2, "losses", {folder(), "fp64"});
}
TEST_F(Layouts, LossesOfFourRanksAreThoseOfOne) {
  test::run_ranks(4, "losses", {folder(), "fp32"});
  test::run_ranks(4, "losses", {folder(), "fp64"});
}
TEST_F(Layouts, AWrongReductionOfOneParameterIsSeen) { test::run_ranks(2, "mutations", {folder()}); }
#endif

}  // namespace
}  // namespace dfm::train
