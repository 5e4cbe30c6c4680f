#include "generate/encoders.h"

#include <ATen/ATen.h>

#include <cmath>
#include <map>

#include "dfm/base/error.h"

namespace dfm::generate {
namespace {

constexpr const char* kUnknown = "unknown";  // what the card of a foreign data set says of an encoder

// Statistics of another source may have been rounded to float32.
bool is_close(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::abs(a[i] - b[i]) > 1e-6 * (std::abs(a[i]) + std::abs(b[i])) + 1e-9) return false;
  }
  return true;
}

std::string geometry_text(std::int64_t channels, std::int64_t k, std::int64_t s) {
  return fmt::format("{} channels at {}x{}x{}", channels, k, s, s);
}
std::string statistics_text(std::int64_t frames) {
  return frames == 0 ? "no latent statistics" : fmt::format("latent statistics of {} frames", frames);
}

std::string hint_of(const char* flag, const std::string& recorded) {
  return recorded.empty() || recorded == kUnknown
             ? ""
             : fmt::format("; hint: {} {}, or the same in another place", flag, recorded);
}

std::string other_name(const char* what, const std::string& got, const std::string& recorded) {
  if (got == recorded || recorded == kUnknown) return "";
  return fmt::format("{} {}: the checkpoint was trained on data of {}; sizes are the same, the weights should be, too",
                     what, got, recorded);
}

// Runs `open` for a name that may be the checkpoint's.
template <typename Open>
auto with_advice(const char* what, const char* flag, const std::string& name, bool is_own, const std::string& where,
                 Open&& open) {
  if (name.empty() || name == kUnknown) {
    throw ConfigError("{}: got no name from {}, want one; hint: {} NAME, the one that its data set was made with", what,
                      where, flag);
  }
  try {
    return open();
  } catch (const Error& error) {
    if (is_own) throw;
    throw Error(error.code(), fmt::format("{} ({} of {}; {} takes another place)", error.what(), what, where, flag));
  }
}

// Of a GPU that has no room for the text encoder: the clip's size is not what to change.
template <typename Body>
auto with_room(const std::string& name, at::Device device, Body&& body) {
  try {
    return body();
  } catch (const c10::OutOfMemoryError&) {
    throw ResourceError(
        "text encoder {}: got no more memory on {}, want enough for its weights and a prompt; hint: "
        "--text-encoder-offload, or a smaller --text-encoder",
        name, device.str());
  }
}

}  // namespace

EncoderChoice choose_encoders(const GenerateOptions& options, const std::optional<data::DatasetCard>& card,
                              const std::string& where) {
  EncoderChoice choice;
  choice.has_card = card.has_value();
  if (card) choice.card = *card;
  choice.where = where;
  choice.is_own_tokenizer = !options.tokenizer.empty();
  choice.is_own_text_encoder = !options.text_encoder.empty();
  choice.tokenizer = choice.is_own_tokenizer ? options.tokenizer : choice.card.tokenizer;
  choice.text_encoder = choice.is_own_text_encoder ? options.text_encoder : choice.card.text_encoder;
  return choice;
}

std::string check_fits(const models::VideoTokenizer& tokenizer, const EncoderChoice& choice) {
  if (!choice.has_card) return "";
  const data::DatasetCard& card = choice.card;
  const std::string got =
      geometry_text(tokenizer.latent_channels(), tokenizer.temporal_compression(), tokenizer.spatial_compression());
  const std::string want = geometry_text(card.latent_channels, card.temporal_compression, card.spatial_compression);
  if (got != want) {
    throw ConfigError("tokenizer {}: got {}, want {} as {} was trained on{}", choice.tokenizer, got, want, choice.where,
                      hint_of("--tokenizer", card.tokenizer));
  }
  const models::LatentStatistics statistics = tokenizer.latent_statistics();
  const bool is_same = statistics.num_frames == card.latent_statistics_frames &&
                       is_close(statistics.mean, card.latent_mean) && is_close(statistics.std, card.latent_std);
  // The card of a data set that DFM made knows of no statistics: DFM applies none, whatever the tokenizer has.
  const bool is_foreign = card.dfm_version.empty() && card.latent_statistics_frames == 0;
  if (!is_same && !is_foreign) {
    throw ConfigError("tokenizer {}: got {}, want {} as {} was trained on{}", choice.tokenizer,
                      statistics_text(statistics.num_frames),
                      statistics.num_frames == card.latent_statistics_frames
                          ? "those"
                          : statistics_text(card.latent_statistics_frames),
                      choice.where, hint_of("--tokenizer", card.tokenizer));
  }
  return other_name("tokenizer", choice.tokenizer, card.tokenizer);
}

std::string check_fits(const models::TextEncoder& text_encoder, const EncoderChoice& choice) {
  if (!choice.has_card) return "";
  if (text_encoder.width() != choice.card.text_width) {
    throw ConfigError("text_encoder {}: got text rows of width {}, want {} as {} was trained on{}", choice.text_encoder,
                      text_encoder.width(), choice.card.text_width, choice.where,
                      hint_of("--text-encoder", choice.card.text_encoder));
  }
  return other_name("text_encoder", choice.text_encoder, choice.card.text_encoder);
}

void fetch_encoders(const EncoderChoice& choice, const GenerateOptions& options) {
  with_advice("tokenizer", "--tokenizer", choice.tokenizer, choice.is_own_tokenizer, choice.where,
              [&] { models::fetch_tokenizer(choice.tokenizer, options.tokenizer_cache_dir); });
  with_advice("text_encoder", "--text-encoder", choice.text_encoder, choice.is_own_text_encoder, choice.where,
              [&] { models::fetch_text_encoder(choice.text_encoder, options.t5_cache_dir); });
}

std::unique_ptr<models::VideoTokenizer> open_tokenizer(const EncoderChoice& choice, const GenerateOptions& options,
                                                       at::Device device) {
  return with_advice("tokenizer", "--tokenizer", choice.tokenizer, choice.is_own_tokenizer, choice.where, [&] {
    return models::make_tokenizer(choice.tokenizer, {.device = device,
                                                     .precision = options.precision,
                                                     .hub_cache = options.tokenizer_cache_dir,
                                                     .decode_window = options.decode_window,
                                                     .tile = options.decode_tile});
  });
}

std::unique_ptr<models::TextEncoder> open_text_encoder(const EncoderChoice& choice, const GenerateOptions& options,
                                                       at::Device device) {
  return with_advice(
      "text_encoder", "--text-encoder", choice.text_encoder, choice.is_own_text_encoder, choice.where, [&] {
        return with_room(choice.text_encoder, device, [&] {
          return models::make_text_encoder(choice.text_encoder, {.device = device,
                                                                 .precision = options.precision,
                                                                 .hub_cache = options.t5_cache_dir,
                                                                 .offload = options.text_encoder_offload});
        });
      });
}

std::vector<at::Tensor> encode_texts(const std::vector<std::string>& texts, comm::World& world, at::Device device,
                                     const std::function<std::shared_ptr<models::TextEncoder>()>& open) {
  const at::NoGradGuard no_grad;
  const auto num_texts = static_cast<std::int64_t>(texts.size());
  std::vector<at::Tensor> rows;
  world.on_first([&] {
    const std::shared_ptr<models::TextEncoder> encoder = open();
    std::map<std::string, at::Tensor> known;
    for (const std::string& text : texts) {
      at::Tensor& row = known[text];
      if (!row.defined()) {
        row = with_room(encoder->name(), device, [&] { return encoder->encode({text}).at(0); });
        row = row.to(device, at::kBFloat16);
      }
      rows.push_back(row);
    }
  });
  if (world.size() == 1) return rows;
  const at::Tensor sizes = at::zeros({num_texts + 1}, at::kLong);
  if (world.is_first()) {
    for (std::int64_t i = 0; i < num_texts; ++i) sizes[i] = rows[static_cast<std::size_t>(i)].size(0);
    sizes[num_texts] = rows.at(0).size(1);
  }
  const at::Tensor sent_sizes = sizes.to(device);
  const comm::GroupPtr all = world.all();
  all->broadcast(sent_sizes, 0).wait();
  const at::Tensor known_sizes = sent_sizes.to(at::kCPU);
  const std::vector<std::int64_t> lengths(known_sizes.const_data_ptr<std::int64_t>(),
                                          known_sizes.const_data_ptr<std::int64_t>() + num_texts);
  const std::int64_t width = known_sizes[num_texts].item<std::int64_t>();
  std::int64_t total = 0;
  for (const std::int64_t length : lengths) total += length;
  const at::Tensor packed_RE = world.is_first()
                                   ? at::cat(rows)
                                   : at::empty({total, width}, at::TensorOptions().dtype(at::kBFloat16).device(device));
  all->broadcast(packed_RE, 0).wait();
  const std::vector<at::Tensor> parts = packed_RE.split_with_sizes(lengths);
  return {parts.begin(), parts.end()};
}

}  // namespace dfm::generate
