#include "foreign_flags.h"

#include <array>

namespace dfm::cli {
namespace {

constexpr auto kPrepareNames = std::to_array<config::ForeignName>({
    {"t5_cache_dir", "--text-encoder names the encoder"},
    {"tokenizer_cache_dir", "--tokenizer names the tokenizer"},
});
constexpr auto kGenerateNames = std::to_array<config::ForeignName>({
    {"t5_cache_dir", "the text encoder is the data set's"},
    {"tokenizer_cache_dir", "the tokenizer is the data set's"},
    {"tokenizer_model", "the tokenizer is the data set's"},
    {"guardrail_dir", "there are no guardrails"},
    {"subject_name", "it is not used"},
    {"num_devices", "the launcher decides"},
});
constexpr auto kGenerateAliases = std::to_array<config::AliasName>({{"checkpoint_path", "checkpoint"}});

}  // namespace

const config::ForeignTable& prepare_foreign_flags() {
  static const config::ForeignTable table{kPrepareNames, {}};
  return table;
}
const config::ForeignTable& generate_foreign_flags() {
  static const config::ForeignTable table{kGenerateNames, kGenerateAliases};
  return table;
}

}  // namespace dfm::cli
