#include "models/t5/t5_encoder.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <map>
#include <optional>
#include <set>

#include "dfm/base/error.h"
#include "dfm/text/t5_tokenizer.h"
#include "models/t5/t5_network.h"

namespace dfm::models {
namespace {

// Finds T5's parameters in a file: with `encoder.` in front, or not (a T5Stack saved alone).
class ParameterNames {
 public:
  explicit ParameterNames(const formats::Weights& weights) : weights_(weights) {
    if (weights.find("encoder.final_layer_norm.weight") != nullptr ||
        weights.find("encoder.block.0.layer.0.SelfAttention.q.weight") != nullptr) {
      prefix_ = "encoder.";
    }
  }
  [[nodiscard]] const std::string& prefix() const { return prefix_; }
  [[nodiscard]] std::string in_file(const std::string& name) const {
    if (name == "embed_tokens.weight" && weights_.find("shared.weight") != nullptr) return "shared.weight";
    return prefix_ + name;
  }

 private:
  const formats::Weights& weights_;
  std::string prefix_;
};

std::string shape_text(const std::vector<std::int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

// What does not fit the config, the first of it in words: a parameter that is missing, of another shape or not of
// floating point, a block that the config does not know.
void check_parameters(const formats::Weights& weights, const ParameterNames& names, const T5Config& config) {
  std::optional<std::string> first;
  std::int64_t count = 0;
  const auto misfit = [&](std::string text) {
    if (++count == 1) first = std::move(text);
  };
  std::set<std::string, std::less<>> known;
  for (const T5Parameter& parameter : t5_parameters(config)) {
    const std::string name = names.in_file(parameter.name);
    known.insert(name);
    const auto* entry = weights.find(name);
    if (entry == nullptr) {
      misfit(fmt::format("{}: got none, want {}", name, shape_text(parameter.shape)));
    } else if (entry->shape != parameter.shape) {
      misfit(fmt::format("{}: got {}, want {}", name, shape_text(entry->shape), shape_text(parameter.shape)));
    } else if (entry->dtype != at::kFloat && entry->dtype != at::kHalf && entry->dtype != at::kBFloat16 &&
               entry->dtype != at::kDouble) {
      misfit(fmt::format("{}: got {}, want fp32, bf16 or fp16", name, at::toString(entry->dtype)));
    }
  }
  for (const auto& entry : weights.entries()) {
    if (entry.name.starts_with(names.prefix() + "block.") && !known.contains(entry.name)) {
      misfit(fmt::format("{}: got {}, want no such parameter", entry.name, shape_text(entry.shape)));
    }
  }
  if (count == 0) return;
  const std::string others = count == 1 ? "" : fmt::format(", and {} more that do not fit", count - 1);
  throw DataError("{}: {}{} (config.json says {} layers, d_model {}, d_ff {}, {} heads of {}{})",
                  weights.path().string(), *first, others, config.num_layers, config.d_model, config.d_ff,
                  config.num_heads, config.d_kv, config.gated ? ", gated" : "");
}

class T5Encoder final : public TextEncoder {
 public:
  T5Encoder(std::string name, text::T5Tokenizer tokenizer, T5Network network)
      : name_(std::move(name)), tokenizer_(std::move(tokenizer)), network_(std::move(network)) {}

  [[nodiscard]] std::string name() const override { return name_; }
  [[nodiscard]] std::int64_t width() const override { return network_.config().d_model; }
  [[nodiscard]] std::int64_t max_length() const override { return T5Network::kMaxLength; }

  // Captions with the same ids are encoded once and share a tensor.
  [[nodiscard]] std::vector<at::Tensor> encode(const std::vector<std::string>& captions) const override {
    std::map<std::vector<std::int32_t>, std::size_t> number_of;
    std::vector<std::size_t> numbers;
    std::vector<std::vector<std::int32_t>> distinct;
    std::vector<const std::string*> first_with;
    for (const std::string& caption : captions) {
      auto [found, is_new] = number_of.try_emplace(tokenizer_.encode(caption), distinct.size());
      if (is_new) {
        distinct.push_back(found->first);
        first_with.push_back(&caption);
      }
      numbers.push_back(found->second);
    }
    const std::vector<at::Tensor> rows = network_.encode(distinct);
    check_finite(rows, first_with);
    std::vector<at::Tensor> result;
    result.reserve(captions.size());
    for (const std::size_t number : numbers) result.push_back(rows[number]);
    return result;
  }

 private:
  void check_finite(const std::vector<at::Tensor>& rows, const std::vector<const std::string*>& captions) const {
    const at::NoGradGuard no_grad;
    if (rows.empty()) return;
    std::vector<at::Tensor> sums;
    for (const at::Tensor& rows_LD : rows) sums.push_back(rows_LD.sum());
    const at::Tensor finite = at::isfinite(at::stack(sums)).to(at::kCPU);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (finite.const_data_ptr<bool>()[i]) continue;
      throw DataError(
          "text encoder {}: got values that are not finite for the caption \"{}\", want numbers; hint: the "
          "weights are damaged, or were stored in fp16 after they had overflowed",
          name_, captions[i]->substr(0, 80));
    }
  }

  std::string name_;
  text::T5Tokenizer tokenizer_;
  T5Network network_;
};

}  // namespace

std::unique_ptr<TextEncoder> open_t5(const T5Files& files, const EncoderOptions& options) {
  const at::NoGradGuard no_grad;
  const T5Config config = read_t5_config(files.config);
  text::T5Tokenizer tokenizer(files.tokenizer);
  if (tokenizer.vocabulary_size() > config.vocab_size) {
    throw DataError("{}: got {} ids, want at most the {} that {} has rows for", files.tokenizer.string(),
                    tokenizer.vocabulary_size(), config.vocab_size, files.config.string());
  }
  const ParameterNames names(files.weights);
  check_parameters(files.weights, names, config);
  const bool bf16 =
      options.precision == Precision::kBf16 || (options.precision == Precision::kAuto && !options.device.is_cpu());
  const auto read = [&](const std::string& name) { return files.weights.read(names.in_file(name)); };
  T5Weights weights = load_t5_weights(config, read, options.device, bf16 ? at::kBFloat16 : at::kFloat, options.offload);
  return std::make_unique<T5Encoder>(files.name, std::move(tokenizer), T5Network(std::move(weights)));
}

}  // namespace dfm::models
