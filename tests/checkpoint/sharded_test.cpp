// Tensor files and run folders written by several ranks.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "checkpoint/iterations.h"
#include "support/ranks.h"
#include "support/temp_folder.h"

namespace dfm {
namespace {

namespace fs = std::filesystem;
using checkpoint::TensorFile;
using Shape = std::vector<std::int64_t>;

const checkpoint::Scalars kScalars = {{"iteration", std::int64_t{12}}, {"name", std::string("butterflies")}};

// How ranks share a tensor: `num_blocks` blocks along `dim`, each cut into flat ranges for the ranks that are left, or
// whole on one rank.
enum class Split { kBlocks, kRanges, kBlocksOfTwoInRanges, kLastRank };

struct Logical {
  std::string name;
  at::Tensor whole;
  int dim = -1;
  Split split = Split::kLastRank;
};

at::Tensor counted(const Shape& shape, at::ScalarType dtype) {
  std::int64_t numel = 1;
  for (const std::int64_t size : shape) numel *= size;
  return at::arange(numel, at::kLong).remainder(8191).view(shape).to(dtype);
}

std::vector<Logical> logical_tensors() {
  return {{"rows", counted({8, 12}, at::kFloat), 0, Split::kBlocks},
          {"columns", counted({3, 8, 5}, at::kBFloat16), 1, Split::kBlocks},
          {"last_dim", counted({6, 16}, at::kDouble), 1, Split::kBlocks},
          {"ranges", counted({7, 13}, at::kFloat), -1, Split::kRanges},
          {"ranges_of_rows", counted({8, 6}, at::kFloat), 0, Split::kBlocksOfTwoInRanges},
          {"ranges_of_columns", counted({5, 6}, at::kFloat), 1, Split::kBlocksOfTwoInRanges},
          {"fewer_than_ranks", counted({3}, at::kFloat), -1, Split::kRanges},
          {"large_columns", counted({3, 1000004}, at::kFloat), 1, Split::kBlocks},
          {"large_ranges", counted({3, 1000004}, at::kFloat), 1, Split::kBlocksOfTwoInRanges},
          {"replicated", counted({10}, at::kFloat)},
          {"scalar", counted({}, at::kLong)},
          {"empty", counted({0, 4}, at::kFloat)},
          {"mask", counted({9}, at::kLong).remainder(2).to(at::kBool)}};
}

// The parts of all ranks. With an odd number of ranks two blocks do not work: one then.
std::vector<comm::Piece> pieces_of(const Shape& shape, int dim, Split split, int num_ranks) {
  std::vector<comm::Piece> pieces;
  const int num_blocks = split == Split::kBlocks                                      ? num_ranks
                         : split == Split::kBlocksOfTwoInRanges && num_ranks % 2 == 0 ? 2
                                                                                      : 1;
  const int num_ranges = split == Split::kLastRank ? 1 : num_ranks / num_blocks;
  for (int rank = 0; rank < num_blocks * num_ranges; ++rank) {
    const comm::Slice block = comm::block_slice(shape, num_blocks == 1 ? -1 : dim, rank % num_blocks, num_blocks);
    const std::int64_t range = rank / num_blocks, numel = block.numel();
    pieces.push_back({split == Split::kLastRank ? num_ranks - 1 : rank,
                      comm::sub_slice(block, numel * range / num_ranges, numel * (range + 1) / num_ranges)});
  }
  return pieces;
}

at::Tensor part_of(const at::Tensor& whole, const comm::Slice& slice) {
  const at::Tensor block = slice.dim < 0 ? whole : whole.narrow(slice.dim, slice.begin, slice.end - slice.begin);
  return block.contiguous().view(-1).narrow(0, slice.first, slice.numel()).clone();
}

std::vector<comm::ShardedTensor> sharded(const comm::World& world) {
  std::vector<comm::ShardedTensor> result;
  for (const Logical& one : logical_tensors()) {
    comm::ShardedTensor tensor{.name = one.name, .shape = one.whole.sizes().vec(), .dtype = one.whole.scalar_type()};
    tensor.pieces = pieces_of(tensor.shape, one.dim, one.split, world.size());
    for (const comm::Piece& piece : tensor.pieces) {
      if (piece.rank == world.rank()) tensor.local.push_back(part_of(one.whole, piece.slice));
    }
    result.push_back(std::move(tensor));
  }
  return result;
}

// Reads into layouts other than the one that wrote: ranges of blocks along each dimension.
void expect_slices(const TensorFile& file, int rank, int num_ranks, comm::World* together = nullptr) {
  std::vector<comm::WantedSlice> wanted;
  std::vector<at::Tensor> expected;
  for (const Logical& one : logical_tensors()) {
    if (one.whole.scalar_type() == at::kBool || one.whole.scalar_type() == at::kLong) continue;
    const Shape shape = one.whole.sizes().vec();
    std::vector<comm::Slice> slices = {
        pieces_of(shape, -1, Split::kRanges, num_ranks)[static_cast<std::size_t>(rank)].slice};
    for (std::size_t dim = 0; dim < shape.size(); ++dim) {
      if (shape[dim] % num_ranks == 0)
        slices.push_back(comm::block_slice(shape, static_cast<int>(dim), rank, num_ranks));
    }
    for (const comm::Slice& slice : slices) {
      wanted.push_back({one.name, shape, slice, at::full({slice.numel()}, -1, at::kDouble)});
      expected.push_back(part_of(one.whole, slice).to(at::kDouble));
    }
  }
  if (together != nullptr) {
    for (const Logical& one : logical_tensors()) {  // all of it on every rank, in the file's type
      const Shape shape = one.whole.sizes().vec();
      wanted.push_back(
          {one.name, shape, comm::whole_slice(shape), at::zeros({one.whole.numel()}, one.whole.options())});
      expected.push_back(one.whole.contiguous().view(-1));
    }
    file.read_slices(wanted, *together);
  } else {
    file.read_slices(wanted);
  }
  for (std::size_t i = 0; i < wanted.size(); ++i)
    EXPECT_TRUE(wanted[i].target.equal(expected[i])) << wanted[i].name << ", slice " << i;
}

RANK_CASE(write_and_read) {
  const fs::path path = args.at(0);
  const std::uint32_t id = checkpoint::write_sharded_tensor_file(path, sharded(world), world, kScalars);
  world.require_same("the content id", std::to_string(id));
  const TensorFile file(path);  // whole on return, on every rank
  EXPECT_EQ(file.content_id(), id);
  EXPECT_EQ(file.scalars(), kScalars);
  expect_slices(file, world.rank(), world.size());
  expect_slices(file, world.rank() % 3, 3);
  expect_slices(file, world.rank(), world.size(), &world);
  expect_slices(file, world.rank() % 2, 2, &world);
}

TEST(ShardedTensorFile, BytesDoNotDependOnTheLayout) {
  const test::TempFolder temp;
  checkpoint::NamedTensors whole;
  for (const Logical& one : logical_tensors()) whole.emplace_back(one.name, one.whole);
  checkpoint::write_tensor_file(temp / "alone.pt", whole, kScalars);
  const std::string want = read_text_file(temp / "alone.pt");
  for (const int num_ranks : {1, 2, 4}) {
    const fs::path path = temp / std::to_string(num_ranks);
    test::run_ranks(num_ranks, "write_and_read", {path.string()});
    EXPECT_TRUE(read_text_file(path) == want) << num_ranks << " ranks";
  }
}

// One weight, its rows dealt to the ranks.
comm::ShardedTensor rows_of(const std::string& name, std::int64_t num_rows, double value, const comm::World& world) {
  comm::ShardedTensor tensor{.name = name, .shape = {num_rows * world.size(), 1024}};
  for (int rank = 0; rank < world.size(); ++rank)
    tensor.pieces.push_back({rank, comm::block_slice(tensor.shape, 0, rank, world.size())});
  tensor.local = {at::full({num_rows * 1024}, value)};
  return tensor;
}

// As train does it.
void save(
    const fs::path& run, std::int64_t iteration, std::int64_t keep, comm::World& world,
    const std::function<void()>& in_between = [] {}) {
  namespace extra = checkpoint::extra;
  checkpoint::save_iteration(run, iteration, keep, world, [&](const fs::path& folder) {
    const auto value = static_cast<double>(iteration);
    const std::vector<comm::ShardedTensor> weights = {rows_of("weight", 2048, value, world)};
    const std::vector<comm::ShardedTensor> state = {rows_of("exp_avg", 2048, value / 2, world),
                                                    rows_of("exp_avg_sq", 2048, value / 4, world)};
    checkpoint::Scalars scalars = {{extra::kIteration, iteration}};
    scalars[extra::kWeightsId] =
        std::int64_t{checkpoint::write_sharded_tensor_file(folder / extra::kWeightsFileName, weights, world)};
    in_between();
    scalars[extra::kOptimizerId] =
        std::int64_t{checkpoint::write_sharded_tensor_file(folder / extra::kOptimizerFileName, state, world)};
    if (!world.is_first()) return;
    checkpoint::write_tensor_file(folder / extra::kFileName, {}, scalars);
    write_file_atomically(folder / extra::kConfigFileName, "train: {}\n");
  });
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& item : fs::directory_iterator(folder)) names.push_back(item.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

RANK_CASE(save_and_resume) {
  const fs::path run = args.at(0);
  for (const std::int64_t iteration : {1, 2, 3}) save(run, iteration, 2, world);
  EXPECT_EQ(names_in(run),
            (std::vector<std::string>{"iter_0000002", "iter_0000003", "latest_checkpointed_iteration.txt"}));
  EXPECT_EQ(read_text_file(run / "latest_checkpointed_iteration.txt"), "3");
  EXPECT_EQ(checkpoint::newest_whole_iteration(run, world).found->iteration, 3);
  // One damaged block is seen by one rank, and told by all.
  world.all()->barrier();
  if (world.is_first()) {
    File file(run / "iter_0000003" / "optimizer_states.pt", File::Mode::kWrite);
    file.write_at(file.size() - (6 << 20), as_bytes("flip"));
  }
  world.all()->barrier();
  const checkpoint::WholeIteration found = checkpoint::newest_whole_iteration(run, world);
  EXPECT_EQ(found.found->iteration, 2);
  ASSERT_EQ(found.refused.size(), 1U);
  EXPECT_NE(found.refused[0].find("iter_0000003/optimizer_states.pt: tensor exp_avg"), std::string::npos)
      << found.refused[0];
  world.require_same("what is refused", found.refused[0]);
}

TEST(SaveOverRanks, KeepsTheNewestAndFindsTheNewestWholeOne) {
  const test::TempFolder temp;
  test::run_ranks(2, "save_and_resume", {temp.path().string()});
}

RANK_CASE(save_with_trouble) {
  const fs::path run = args.at(0);
  save(run, 1, -1, world);
  save(run, 2, -1, world, [&] {
    if (world.rank() != world.size() - 1) return;
    if (args.at(1) == "killed") std::raise(SIGKILL);
    // A limit on file sizes stands for a full disk that this rank alone sees.
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{.rlim_cur = 1 << 20, .rlim_max = 1 << 20};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  });
  ADD_FAILURE() << "the save has ended well";
}

TEST(SaveOverRanks, KilledRankLeavesNothingThatLooksComplete) {
  const test::TempFolder temp;
  for (const test::RankResult& result : test::launch_ranks(3, "save_with_trouble", {temp.path().string(), "killed"}))
    EXPECT_TRUE(result.exit_code == 128 + SIGKILL || result.exit_code == static_cast<int>(ExitCode::kComm))
        << result.exit_code << "\n"
        << result.output;
  EXPECT_EQ(names_in(temp.path()),
            (std::vector<std::string>{"iter_0000001", "iter_0000002.tmp", "latest_checkpointed_iteration.txt"}));
  const auto world = comm::World::solo();
  EXPECT_EQ(checkpoint::newest_whole_iteration(temp.path(), *world).found->iteration, 1);
  test::save_small_iteration(temp.path(), 3, 1.5);
  EXPECT_EQ(names_in(temp.path()),
            (std::vector<std::string>{"iter_0000001", "iter_0000003", "latest_checkpointed_iteration.txt"}));
}

TEST(SaveOverRanks, FullDiskOnOneRankEndsAllAndGivesTheSpaceBack) {
  const test::TempFolder temp;
  std::string outputs;
  for (const test::RankResult& result : test::launch_ranks(2, "save_with_trouble", {temp.path().string(), "full"})) {
    EXPECT_EQ(result.exit_code, static_cast<int>(ExitCode::kResource)) << result.output;
    outputs += result.output;
  }
  EXPECT_NE(outputs.find("optimizer_states.pt: cannot write: "), std::string::npos) << outputs;
  EXPECT_EQ(names_in(temp.path()), (std::vector<std::string>{"iter_0000001", "latest_checkpointed_iteration.txt"}));
}

}  // namespace
}  // namespace dfm
