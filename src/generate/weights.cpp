#include "generate/weights.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <map>
#include <set>

#include "dfm/base/error.h"
#include "dfm/checkpoint/extra_state.h"
#include "dfm/checkpoint/run_folder.h"

namespace dfm::generate {
namespace {

namespace fs = std::filesystem;
namespace extra = checkpoint::extra;

using Shapes = std::map<std::string, std::vector<std::int64_t>>;

// One size of a tensor, counted from its last dim: stacked tensors have one more dim in front.
std::int64_t size_from_end(const Shapes& shapes, const std::string& name, std::size_t from_end,
                           const std::string& where) {
  const auto found = shapes.find(name);
  if (found == shapes.end() || found->second.size() <= from_end) {
    throw CheckpointError(
        "{}: got no tensor {}, want the weights of DFM's DiT; hint: pass a model.pth, an iteration "
        "folder or a run folder",
        where, name);
  }
  return found->second[found->second.size() - 1 - from_end];
}

}  // namespace

fs::path find_weights(const fs::path& checkpoint) {
  std::error_code ignored;
  if (fs::is_regular_file(checkpoint, ignored)) return fs::canonical(checkpoint);
  if (fs::is_symlink(checkpoint, ignored) && !fs::exists(checkpoint, ignored)) {
    throw CheckpointError("{}: got a link to {}, which is not there, want weights", checkpoint.string(),
                          fs::read_symlink(checkpoint).string());
  }
  const auto within = [](const fs::path& folder) -> fs::path {
    for (const char* name : {extra::kModelLinkName, extra::kWeightsFileName}) {
      if (fs::is_regular_file(folder / name)) return fs::canonical(folder / name);
    }
    return {};
  };
  if (fs::is_directory(checkpoint, ignored)) {
    if (fs::path weights = within(checkpoint); !weights.empty()) return weights;
  } else if (!checkpoint.extension().empty() || checkpoint.filename().empty()) {
    throw CheckpointError(
        "{}: got no such file, want weights; hint: --checkpoint takes a weight file, an iteration "
        "folder or the run folder of dfm train",
        checkpoint.string());
  }
  const checkpoint::IterationFolder iteration = checkpoint::resolve_iteration(checkpoint);
  if (fs::path weights = within(iteration.path); !weights.empty()) return weights;
  throw CheckpointError("{}: got neither {} nor {} in it, want weights", iteration.path.string(), extra::kModelLinkName,
                        extra::kWeightsFileName);
}

models::DitConfig infer_config(const std::vector<checkpoint::TensorFile::Entry>& entries, const std::string& where,
                               const StoredFacts& facts) {
  constexpr std::string_view kWrapper = "module.";
  constexpr std::string_view kLayers = "decoder.layers.";
  Shapes shapes;  // layer tensors under the name without their number
  std::set<std::string> layers;
  std::int64_t num_stacked = 0;
  for (const auto& entry : entries) {
    std::string name = entry.name.starts_with(kWrapper) ? entry.name.substr(kWrapper.size()) : entry.name;
    if (name.starts_with(kLayers)) {
      const std::string rest = name.substr(kLayers.size());
      const std::string number = rest.substr(0, rest.find('.'));
      if (!number.empty() && number.find_first_not_of("0123456789") == std::string::npos) {
        layers.insert(number);
        name = std::string(kLayers) + rest.substr(std::min(number.size() + 1, rest.size()));
      } else if (name.ends_with("linear_qkv.weight") && entry.shape.size() == 3) {
        num_stacked = entry.shape[0];
      }
    }
    shapes[name] = entry.shape;
  }
  models::DitConfig config;
  config.patch_spatial = facts.patch_spatial;
  config.patch_temporal = facts.patch_temporal;
  const std::string attention = std::string(kLayers) + "full_self_attention.";
  config.num_layers = layers.empty() ? num_stacked : static_cast<std::int64_t>(layers.size());
  config.hidden_size = size_from_end(shapes, "x_embedder.weight", 1, where);
  const std::int64_t head_dim = size_from_end(shapes, attention + "q_layernorm.weight", 0, where);
  config.crossattn_emb_size =
      size_from_end(shapes, std::string(kLayers) + "cross_attention.linear_kv.weight", 0, where);
  const std::int64_t token_channels = size_from_end(shapes, "x_embedder.weight", 0, where);
  const std::int64_t cells = config.patch_spatial * config.patch_spatial * config.patch_temporal;
  if (head_dim < 1 || config.hidden_size % head_dim != 0 || token_channels % cells != 0 || token_channels < 1 ||
      config.num_layers < 1) {
    throw CheckpointError("{}: got {} layers, hidden size {}, head size {}, {} token channels, want those of a DiT",
                          where, config.num_layers, config.hidden_size, head_dim, token_channels);
  }
  config.num_attention_heads = config.hidden_size / head_dim;
  config.in_channels = token_channels / cells;
  return config;
}

StoredFacts stored_facts(const fs::path& weights) {
  StoredFacts facts;
  const fs::path path = weights.parent_path() / extra::kFileName;
  if (!fs::exists(path)) return facts;
  const checkpoint::TensorFile file(path);
  const auto take = [&]<typename T>(const std::string& name, T& value) {
    const auto found = file.scalars().find(name);
    if (found == file.scalars().end()) return false;
    const T* stored = std::get_if<T>(&found->second);
    if (stored == nullptr) throw CheckpointError("{}: got {} of another type", path.string(), name);
    value = *stored;
    return true;
  };
  std::string card;
  if (take(extra::kDatasetCard, card)) facts.card = data::card_from_json(card, path.string());
  for (auto [name, size] :
       {std::pair{"patch_spatial", &facts.patch_spatial}, {"patch_temporal", &facts.patch_temporal}}) {
    if (take(std::string(extra::kModelPrefix) + name, *size) && *size < 1) {
      throw CheckpointError("{}: got {} {}, want at least 1", path.string(), name, *size);
    }
  }
  return facts;
}

}  // namespace dfm::generate
