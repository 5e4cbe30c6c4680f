#include "train/checks.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "dfm/base/error.h"

namespace dfm::train {
namespace {

// A number that changes with any bit of the tensor: the sum of its 16-bit words, each times an odd number of its place.
at::Tensor bits_hash(const at::Tensor& tensor) {
  const at::Tensor words = tensor.detach().contiguous().view(-1).view(at::kShort).to(at::kLong);
  const at::Tensor place = at::arange(words.numel(), words.options());
  // Knuth's multiplier spreads the places; products wrap, the same way everywhere.
  return (words * (place * 2654435761LL + 12345).bitwise_or(1)).sum();
}

// True for each parameter whose hash is not the same on all ranks of the group.
at::Tensor differs_in(comm::Group& group, const at::Tensor& hashes) {
  const at::Tensor largest = hashes.clone();
  const at::Tensor smallest = hashes.bitwise_not();  // the maximum of ~x is ~ the minimum of x
  group.all_reduce(largest, comm::Reduce::kMax).wait();
  group.all_reduce(smallest, comm::Reduce::kMax).wait();
  return largest.ne(smallest.bitwise_not()).to(at::kCPU);
}

}  // namespace

std::string first_few(std::vector<std::string> names, std::size_t most) {
  const std::size_t more = names.size() > most ? names.size() - most : 0;
  names.resize(names.size() - more);
  return fmt::format("{}{}", fmt::join(names, ", "), more > 0 ? fmt::format(" and {} more", more) : "");
}

std::string keys_with_bad_loss(const data::LoadedStep& step, const data::Dataset& dataset,
                               const std::vector<RowLoss>& losses) {
  std::vector<std::string> keys;
  for (std::size_t r = 0; r < losses.size(); ++r) {
    const at::Tensor segments = losses[r].segments_N.to(at::kCPU, at::kDouble).contiguous();
    for (std::int64_t i = 0; i < segments.size(0); ++i) {
      if (std::isfinite(segments.const_data_ptr<double>()[i])) continue;
      const auto member = static_cast<std::size_t>(step.rows[r].members[static_cast<std::size_t>(i)]);
      keys.push_back(dataset.entries()[step.samples[member].index].key);
    }
  }
  return first_few(std::move(keys));
}

std::string gather_by_rank(comm::World& world, const std::string& mine) {
  if (world.size() == 1) return mine;
  const std::vector<std::string> all = world.gather_text(mine);
  std::vector<std::string> parts;
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (!all[rank].empty()) parts.push_back(fmt::format("rank {}: {}", rank, all[rank]));
  }
  return fmt::format("{}", fmt::join(parts, "; "));
}

void check_equal_weights(const models::Dit& model, const Layout& layout, comm::World& world, std::int64_t iteration) {
  if (world.size() == 1) return;
  const std::vector<parallel::Parameter> parameters = model.placed_parameters();
  std::vector<at::Tensor> split, replicated;
  std::vector<std::string> split_names, replicated_names;
  for (const parallel::Parameter& parameter : parameters) {
    const bool is_split = parameter.split_dim >= 0 && layout.sizes.tensor > 1;
    (is_split ? split : replicated).push_back(bits_hash(parameter.tensor));
    (is_split ? split_names : replicated_names).push_back(parameter.name);
  }
  std::vector<std::string> drifted;
  std::string mine;  // this rank's hashes of what drifted
  const auto compare = [&](comm::Group& group, const std::vector<at::Tensor>& hashes,
                           const std::vector<std::string>& names) {
    if (hashes.empty()) return;
    const at::Tensor all = at::stack(hashes);
    const at::Tensor differs = differs_in(group, all);
    const at::Tensor values = all.to(at::kCPU);
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!differs.const_data_ptr<bool>()[i]) continue;
      drifted.push_back(names[i]);
      if (mine.empty())
        mine = fmt::format("{:016x}", static_cast<std::uint64_t>(values.const_data_ptr<std::int64_t>()[i]));
    }
  };
  compare(*layout.reduce.data_context, split, split_names);
  compare(*layout.reduce.replicas, replicated, replicated_names);
  // One rank may have seen what another could not: a split parameter belongs to some ranks only.
  const at::Tensor found = at::full({1}, static_cast<std::int64_t>(drifted.size()),
                                    at::TensorOptions(parameters.front().tensor.device()).dtype(at::kLong));
  world.all()->all_reduce(found, comm::Reduce::kMax).wait();
  if (found.item<std::int64_t>() == 0) return;
  constexpr std::size_t kMost = 4;
  throw InternalError(
      "weights after iteration {}: got copies with different bits, want equal ones ({}); hint: continue from the last "
      "checkpoint, which holds one copy, and report this",
      iteration,
      gather_by_rank(world, drifted.empty() ? "" : fmt::format("{} has hash {}", first_few(drifted, kMost), mine)));
}

}  // namespace dfm::train
