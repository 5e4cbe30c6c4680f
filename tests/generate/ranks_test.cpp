// Generate over real ranks: the same latents as one rank, and each file written once, by the right rank.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <set>

#include "dfm/base/file.h"
#include "dfm/formats/media.h"
#include "dfm/generate/generate.h"
#include "generate/denoiser.h"
#include "generate/teams.h"
#include "generate/tiny_model.h"
#include "support/ranks.h"
#include "support/tolerance.h"

namespace dfm::generate {
namespace {

namespace fs = std::filesystem;

models::Dit model_over(const comm::GroupPtr& context, parallel::ContextComm context_comm) {
  parallel::Parallel parallel;
  parallel.context = context;
  parallel.context_comm = context_comm;
  models::DitConfig config = test::tiny_config();
  config.context_parallel_size = context->size();
  config.cp_comm_type = context_comm;
  models::Dit dit(config, at::kFloat, at::kCPU, 0, parallel);
  dit.load(test::tiny_weights(), "test");
  return dit;
}

Clip clip_of(const models::LatentShape& shape) {
  at::Tensor text = at::empty({7, 1024}, at::kFloat), negative_text = at::empty({3, 1024}, at::kFloat);
  ops::philox_normal_(text, 5, 0, Purpose::kNoise);
  ops::philox_normal_(negative_text, 5, 1, Purpose::kNoise);
  return {.shape = shape,
          .text_LE = text,
          .negative_text_LE = negative_text,
          .fps = 12,
          .guidance = 2,
          .seed = 9,
          .index = 4};
}

const models::LatentShape k30Tokens{.frames = 2, .height = 6, .width = 10};  // two ranks 15 each; four 8, 8, 8, 6
const models::LatentShape k3Tokens{.frames = 1, .height = 2, .width = 6};    // four ranks: one has only padding

struct Layout {
  int cp_size = 1;
  parallel::ContextComm context_comm = parallel::ContextComm::kP2p;
  bool shares_guidance = false;
};

// The latent over ranks against that of this rank alone. Every rank of the world has a place in `layout`.
void expect_latent_of_one_rank(comm::World& world, const Layout& layout, const models::LatentShape& shape,
                               const diffusion::SampleOptions& sampling) {
  GenerateOptions options;
  options.cp_size = layout.cp_size;
  options.guidance_parallel = layout.shares_guidance ? GuidanceParallel::kOn : GuidanceParallel::kOff;
  const Place place = Teams(options, world.size(), 8).place_of(world.rank());
  const comm::GroupPtr context = world.group("context", place.context_ranks);
  const comm::GroupPtr branches = world.group("guidance", place.branch_ranks);
  ASSERT_EQ(context->size(), layout.cp_size);
  ASSERT_EQ(branches->size(), layout.shares_guidance ? 2 : 1);

  const Clip clip = clip_of(shape);
  const at::Tensor got = sample_clip(model_over(context, layout.context_comm), clip, branches, sampling);
  const at::Tensor want = sample_clip(model_over(comm::alone(), {}), clip, comm::alone(), sampling);
  // Guidance alone changes no number at all. The tolerance is of latents of size 1 to 10.
  const double error = test::relative_error(got, want);
  EXPECT_LE(error, layout.cp_size == 1 ? 0 : 1e-5)
      << "cp " << layout.cp_size << " " << config::enum_name(layout.context_comm) << ", guidance "
      << layout.shares_guidance << ", " << shape.num_tokens() << " tokens";
  if (world.is_first()) fmt::print("cp {}, guidance {}: {:.1e}\n", layout.cp_size, layout.shares_guidance, error);
}

using parallel::ContextComm;
constexpr std::int64_t kSteps = 5;

RANK_CASE(latents_of_two) {
  const diffusion::SampleOptions euler{.num_steps = kSteps};
  const diffusion::SampleOptions second_order{.sampler = diffusion::Sampler::kDpmpp2m, .num_steps = kSteps};
  expect_latent_of_one_rank(world, {2, ContextComm::kA2a, false}, k30Tokens, euler);
  expect_latent_of_one_rank(world, {2, ContextComm::kP2p, false}, k30Tokens, second_order);
  expect_latent_of_one_rank(world, {2, ContextComm::kA2a, false}, k3Tokens, euler);
  expect_latent_of_one_rank(world, {1, ContextComm::kP2p, true}, k30Tokens, second_order);
}

RANK_CASE(latents_of_four) {
  const diffusion::SampleOptions euler{.num_steps = kSteps};
  const diffusion::SampleOptions second_order{.sampler = diffusion::Sampler::kDpmpp2m, .num_steps = kSteps};
  expect_latent_of_one_rank(world, {2, ContextComm::kA2a, true}, k30Tokens, second_order);
  expect_latent_of_one_rank(world, {2, ContextComm::kP2p, true}, k3Tokens, euler);
  expect_latent_of_one_rank(world, {4, ContextComm::kP2p, false}, k30Tokens, euler);
  expect_latent_of_one_rank(world, {4, ContextComm::kP2p, false}, k3Tokens, euler);
}

TEST(GenerateRanks, LatentsOfTwoAreThoseOfOne) { test::run_ranks(2, "latents_of_two"); }
TEST(GenerateRanks, LatentsOfFourAreThoseOfOne) { test::run_ranks(4, "latents_of_four"); }

GenerateOptions small_options(const fs::path& folder, const std::string& name) {
  GenerateOptions options;
  options.prompt = "a blue butterfly";
  options.checkpoint = folder / "run";
  options.height = 32;
  options.width = 48;
  options.num_video_frames = 5;
  options.num_steps = 3;
  options.guidance = 1.5;
  options.video_save_path = folder / name / "clip.mp4";
  return options;
}

GenerateOptions three_prompts(const fs::path& folder, const std::string& name) {
  GenerateOptions options = small_options(folder, name);
  options.prompt = "";
  options.prompts_file = folder / "prompts.txt";
  return options;
}

// What this rank wrote; on the first rank the report's lines must name all files of the folder.
std::vector<std::string> run_over(comm::World& world, const GenerateOptions& options) {
  const std::shared_ptr<comm::World> shared(std::shared_ptr<void>(), &world);
  const auto files = run(options, {.world = shared});
  const std::vector<std::string> lines = report(files, world);
  if (world.is_first()) {
    std::set<std::string> there, reported;
    for (const auto& entry : fs::directory_iterator(options.video_save_path.parent_path())) {
      there.insert(entry.path().string());
    }
    for (const std::string& line : lines) reported.insert(line.substr(0, line.find(": ")));
    EXPECT_EQ(reported, there);
  } else {
    EXPECT_TRUE(lines.empty());
  }
  std::vector<std::string> names;
  for (const GeneratedFile& file : files) names.push_back(file.path.filename().string());
  return names;
}

using Names = std::vector<std::string>;

RANK_CASE(files_of_two) {
  const fs::path folder = args.at(0);
  const bool is_first = world.is_first();
  EXPECT_EQ(run_over(world, small_options(folder, "guidance")), is_first ? Names{"idx=0_rank=0_clip.mp4"} : Names{});
  GenerateOptions context = small_options(folder, "context");
  context.cp_size = 2;
  EXPECT_EQ(run_over(world, context), is_first ? Names{"idx=0_rank=0_clip.mp4"} : Names{});
  EXPECT_EQ(run_over(world, three_prompts(folder, "prompts")),
            is_first ? (Names{"idx=0_rank=0_clip.mp4", "idx=2_rank=0_clip.mp4"}) : Names{"idx=1_rank=1_clip.mp4"});
  // An error on all ranks, before anything is loaded.
  GenerateOptions other = small_options(folder, "bad");
  other.seed = static_cast<std::uint64_t>(world.rank());
  EXPECT_NE(test::error_of([&] { run_over(world, other); }).find("seed="), std::string::npos);
  EXPECT_FALSE(fs::exists(folder / "bad"));
}

RANK_CASE(files_of_four) {
  const fs::path folder = args.at(0);
  EXPECT_EQ(run_over(world, small_options(folder, "spare")),
            world.is_first() ? Names{"idx=0_rank=0_clip.mp4"} : Names{});
  GenerateOptions both = small_options(folder, "both");
  both.cp_size = 2;
  EXPECT_EQ(run_over(world, both), world.is_first() ? Names{"idx=0_rank=0_clip.mp4"} : Names{});
  const std::vector<Names> of_ranks{
      {"idx=0_rank=0_clip.mp4"}, {}, {"idx=1_rank=2_clip.mp4"}, {"idx=2_rank=3_clip.mp4"}};
  EXPECT_EQ(run_over(world, three_prompts(folder, "prompts")), of_ranks[static_cast<std::size_t>(world.rank())]);
}

class GenerateRanksFiles : public testing::Test {
 protected:
  GenerateRanksFiles() {
    at::set_num_threads(1);  // as the ranks do: the files are compared by bytes
    data::DatasetCard card;
    card.fps = 12;
    test::write_iteration(path() / "run", 3, test::tiny_weights(), card);
    write_file_atomically(path() / "prompts.txt", "a blue butterfly\na red moth\na green leaf\n");
    one_ = run(three_prompts(path(), "one"), {});
  }

  [[nodiscard]] fs::path path() const { return folder_.path(); }

  void expect_same_bytes(std::size_t index, const fs::path& file) const {
    EXPECT_TRUE(read_text_file(one_.at(index).path) == read_text_file(path() / file)) << file;
  }
  // Every pixel within a level: the latents are, to 1e-5.
  void expect_same_pixels(std::size_t index, const fs::path& file) const {
    formats::VideoReader want(one_.at(index).path), got(path() / file);
    while (auto frame = want.next()) {
      const auto other = got.next();
      ASSERT_TRUE(other.has_value());
      const at::Tensor difference = (frame->rgb_HW3.to(at::kInt) - other->rgb_HW3.to(at::kInt)).abs();
      EXPECT_LE(difference.max().item<int>(), 2) << file;
      EXPECT_LE(difference.to(at::kFloat).mean().item<double>(), 0.02) << file;
    }
    EXPECT_FALSE(got.next().has_value());
  }

 private:
  test::TempFolder folder_;
  std::vector<GeneratedFile> one_;
};

TEST_F(GenerateRanksFiles, TwoRanksShareAPromptOrDealThem) {
  test::run_ranks(2, "files_of_two", {path().string()});
  expect_same_bytes(0, "guidance/idx=0_rank=0_clip.mp4");
  expect_same_pixels(0, "context/idx=0_rank=0_clip.mp4");
  expect_same_bytes(0, "prompts/idx=0_rank=0_clip.mp4");
  expect_same_bytes(1, "prompts/idx=1_rank=1_clip.mp4");
  expect_same_bytes(2, "prompts/idx=2_rank=0_clip.mp4");
}

TEST_F(GenerateRanksFiles, FourRanksFormTeamsAndTheRestIdles) {
  test::run_ranks(4, "files_of_four", {path().string()});
  expect_same_bytes(0, "spare/idx=0_rank=0_clip.mp4");
  expect_same_pixels(0, "both/idx=0_rank=0_clip.mp4");
  expect_same_bytes(0, "prompts/idx=0_rank=0_clip.mp4");
  expect_same_bytes(1, "prompts/idx=1_rank=2_clip.mp4");
  expect_same_bytes(2, "prompts/idx=2_rank=3_clip.mp4");
}

RANK_CASE(three_in_groups_of_two) {
  GenerateOptions options = small_options(args.at(0), "three");
  options.cp_size = 2;
  run_over(world, options);
}

TEST_F(GenerateRanksFiles, RefusesRanksThatDoNotFormGroups) {
  const auto results = test::launch_ranks(3, "three_in_groups_of_two", {path().string()});
  std::string output;
  for (const test::RankResult& result : results) {
    EXPECT_EQ(result.exit_code, static_cast<int>(ExitCode::kConfig)) << result.output;
    output += result.output;
  }
  EXPECT_NE(output.find("cp_size: got 2 for 3 ranks, want a divisor of 3; hint: 1 or 3"), std::string::npos) << output;
  EXPECT_FALSE(fs::exists(path() / "three"));
}

}  // namespace
}  // namespace dfm::generate
