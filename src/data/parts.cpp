#include "data/parts.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/hash.h"
#include "dfm/data/shard_writer.h"
#include "dfm/formats/torch_file.h"

namespace dfm::data {

JsonPart parse_json_part(std::string_view json, const std::string& name) {
  const nlohmann::json parsed = nlohmann::json::parse(json, nullptr, false);
  if (!parsed.is_object()) throw DataError("{}: got text that is no JSON object, want one", name);
  JsonPart part;
  if (const auto fps = parsed.find("fps"); fps != parsed.end() && fps->is_number()) {
    const double value = fps->get<double>();
    if (std::isfinite(value) && value > 0) part.fps = value;
  }
  if (const auto caption = parsed.find("caption"); caption != parsed.end() && caption->is_string()) {
    part.caption = caption->get<std::string>();
  }
  return part;
}

std::optional<at::Tensor> squeeze_latent(const at::Tensor& stored) {
  if (!stored.is_floating_point() || stored.numel() == 0) return std::nullopt;
  if (stored.dim() == 5 && stored.size(0) == 1) return stored.squeeze(0);
  if (stored.dim() == 4) return stored;
  return std::nullopt;
}

std::optional<at::Tensor> squeeze_text(const at::Tensor& stored) {
  if (!stored.is_floating_point() || stored.numel() == 0) return std::nullopt;
  if (stored.dim() == 3 && stored.size(0) == 1) return stored.squeeze(0);
  if (stored.dim() == 2) return stored;
  return std::nullopt;
}

std::int64_t count_text_rows(const at::Tensor& text_LE) {
  std::int64_t rows = std::min(text_LE.size(0), kTextRows);
  // From the end in blocks: most rows are padding.
  constexpr std::int64_t kBlock = 64;
  for (; rows > 0; rows -= std::min(rows, kBlock)) {
    const std::int64_t first = std::max<std::int64_t>(0, rows - kBlock);
    const at::Tensor is_used = text_LE.slice(0, first, rows).ne(0).any(1);
    const at::Tensor used = is_used.nonzero();
    if (used.size(0) > 0) return first + used[-1].item<std::int64_t>() + 1;
  }
  return 0;
}

std::string value_problem(const at::Tensor& values, double limit) {
  if (values.numel() == 0) return "";
  const double largest = values.abs().max().item<double>();  // NaN wins a maximum
  if (!std::isfinite(largest)) return "got values that are not finite, want finite ones";
  if (limit > 0 && largest > limit) return fmt::format("got a value of size {:g}, want at most {:g}", largest, limit);
  return "";
}

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("{}[{}]", tensor.is_floating_point() ? "" : "integers ", fmt::join(tensor.sizes(), ", "));
}

std::string sample_key(std::uint64_t index) { return fmt::format("{:06}", index); }

SampleParts make_sample_parts(const std::string& key, const at::Tensor& latent_CTHW, const at::Tensor& text_LE,
                              const SampleDescription& description) {
  if (latent_CTHW.dim() != 4 || text_LE.dim() != 2 || text_LE.size(0) > kTextRows) {
    throw InternalError("sample {}: got latent {} and text {}, want [C, T, H, W] and [L <= {}, E]", key,
                        shape_text(latent_CTHW), shape_text(text_LE), kTextRows);
  }
  const at::Tensor latent = latent_CTHW.to(at::kCPU, at::kBFloat16).contiguous();
  if (const std::string problem = value_problem(latent, kLatentLimit); !problem.empty()) {
    throw DataError("latent of sample {}: {}", key, problem);
  }
  at::Tensor text = at::zeros({1, kTextRows, text_LE.size(1)}, at::kBFloat16);
  text[0].slice(0, 0, text_LE.size(0)).copy_(text_LE);
  if (const std::string problem = value_problem(text, 0); !problem.empty()) {
    throw DataError("text of sample {}: {}", key, problem);
  }
  SampleParts parts;
  SampleEntry& entry = parts.entry;
  entry.key = key;
  entry.channels = latent.size(0), entry.frames = latent.size(1);
  entry.height = latent.size(2), entry.width = latent.size(3);
  entry.text_length = count_text_rows(text[0]);
  entry.text_width = text.size(2);
  entry.fps = description.fps > 0 ? description.fps : 0;

  nlohmann::ordered_json json;
  json["image_height"] = description.image_height;
  json["image_width"] = description.image_width;
  json["num_frames"] = description.num_frames;
  json["fps"] = entry.fps > 0 ? nlohmann::ordered_json(entry.fps) : nlohmann::ordered_json(nullptr);
  json["caption"] = description.caption;
  json["text_length"] = entry.text_length;
  json["source"] = description.source;
  json["original_height"] = description.original_height;
  json["original_width"] = description.original_width;
  parts.json = json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  parts.pickle = formats::pickle_tensor(text);
  parts.pth = formats::torch_save_tensor(latent.unsqueeze(0));
  const auto describe = [](SampleEntry::Part& part, const std::string& bytes) {
    part.size = bytes.size();
    part.checksum = crc32c(as_bytes(bytes));
  };
  describe(entry.json, parts.json), describe(entry.pickle, parts.pickle), describe(entry.pth, parts.pth);
  return parts;
}

}  // namespace dfm::data
