#include "models/cosmos_tokenizer/cosmos_tokenizer.h"

#include <ATen/ATen.h>

#include "dfm/base/error.h"
#include "dfm/formats/torch_file.h"
#include "dfm/formats/weights.h"
#include "models/cosmos_tokenizer/tokenizer.h"

namespace dfm::models {
namespace {

void add_tensors(cosmos::NamedTensors& tensors, const std::filesystem::path& path) {
  const formats::Weights weights = formats::Weights::open(path);
  for (const auto& entry : weights.entries()) {
    if (!at::isFloatingType(entry.dtype)) continue;  // counters and indices that are no part of the network
    tensors.insert_or_assign(entry.name, weights.read(entry.name));
  }
}

}  // namespace

LatentStatistics read_mean_std(const std::filesystem::path& path, std::int64_t channels) {
  const formats::PickleValue value = formats::load_torch_file(path);
  std::vector<at::Tensor> pair;
  if (const at::Tensor* both = value.tensor(); both != nullptr && both->dim() > 1) pair = both->unbind(0);
  for (const auto* items : {value.list(), value.tuple()}) {
    for (std::size_t i = 0; items != nullptr && i < items->size(); ++i) {
      if (const at::Tensor* item = (*items)[i].tensor()) pair.push_back(*item);
    }
  }
  const bool good =
      pair.size() == 2 && pair[0].numel() == pair[1].numel() && pair[0].numel() > 0 && pair[0].numel() % channels == 0;
  if (!good) {
    throw DataError("{}: got something else, want two tensors of {} x frames values", path.string(), channels);
  }
  LatentStatistics statistics;
  statistics.num_frames = pair[0].numel() / channels;
  for (std::size_t i = 0; i < 2; ++i) {
    const at::Tensor values = pair[i].to(at::kDouble).reshape({-1}).contiguous();
    std::vector<double>& target = i == 0 ? statistics.mean : statistics.std;
    target.assign(values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel());
  }
  cosmos::check_statistics(statistics, path.string());
  return statistics;
}

std::unique_ptr<VideoTokenizer> open_cosmos(const CosmosFiles& files, const EncoderOptions& options) {
  const at::NoGradGuard no_grad;
  cosmos::NamedTensors tensors;
  std::string where;
  for (const std::filesystem::path& path : {files.weights, files.encoder_jit, files.decoder_jit}) {
    if (path.empty()) continue;
    add_tensors(tensors, path);
    where += (where.empty() ? "" : ", ") + path.string();
  }
  std::optional<cosmos::ReadConfig> read;
  if (!files.config.empty()) read = cosmos::read_config(files.config);
  cosmos::Config config = read ? read->config : cosmos::derive_config(tensors, files.name + " " + where, where);
  LatentStatistics statistics = read ? read->statistics : LatentStatistics{};
  if (!files.mean_std.empty()) statistics = read_mean_std(files.mean_std, config.latent_channels);
  return std::make_unique<cosmos::Tokenizer>(files.name, config, std::move(statistics), tensors, options, where);
}

}  // namespace dfm::models
