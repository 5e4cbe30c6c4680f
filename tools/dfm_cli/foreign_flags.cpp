#include "foreign_flags.h"

#include <array>

namespace dfm::cli {
namespace {

constexpr auto kGenerateNames = std::to_array<config::ForeignName>({
    {"guardrail_dir", "there are no guardrails"},
    {"subject_name", "it is not used"},
    {"num_devices", "the launcher decides"},
});
constexpr auto kGenerateAliases =
    std::to_array<config::AliasName>({{"checkpoint_path", "checkpoint"}, {"tokenizer_model", "tokenizer"}});

}  // namespace

const config::ForeignTable& prepare_foreign_flags() {
  static const config::ForeignTable table{{}, {}};
  return table;
}
const config::ForeignTable& generate_foreign_flags() {
  static const config::ForeignTable table{kGenerateNames, kGenerateAliases};
  return table;
}

}  // namespace dfm::cli
