#pragma once
// An option is declared once: a member with its default in a plain struct beside its owner, and a row in fields().
//
//   struct OptimizerConfig {
//     double lr = 0.9e-4;
//     static constexpr auto fields() {
//       return config::fields<OptimizerConfig>(config::field("lr", &OptimizerConfig::lr, "Peak learning rate",
//       config::positive));
//     }
//     void check(config::Problems& problems) const;   // optional: rules across fields
//   };
//
// YAML, dotted overrides, --flags, --help, docs/config.md and validation are visitors over that tuple (config/tree.h).
// Members may be: bool, int64_t, uint64_t, double, std::string, std::filesystem::path, enums with enum_names(),
// std::optional and std::vector of those, and structs with fields() of their own (sections).
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace dfm::config {

// A check gives nullptr, or what is wanted: "> 0".
template <typename T>
using Check = const char* (*)(const T&);

struct NoCheck {
  template <typename T>
  static constexpr const char* problem(const T&) {
    return nullptr;
  }
};
struct Positive {
  template <typename T>
  static constexpr const char* problem(const T& value) {
    return value > T{0} ? nullptr : "a value > 0";
  }
};
struct NonNegative {
  template <typename T>
  static constexpr const char* problem(const T& value) {
    return value >= T{0} ? nullptr : "a value >= 0";
  }
};
struct UnitInterval {
  template <typename T>
  static constexpr const char* problem(const T& value) {
    return value >= T{0} && value <= T{1} ? nullptr : "a value in [0, 1]";
  }
};
struct NotEmpty {
  template <typename T>
  static constexpr const char* problem(const T& value) {
    return value.empty() ? "a value that is not empty" : nullptr;
  }
};
inline constexpr NoCheck no_check;
inline constexpr Positive positive;
inline constexpr NonNegative non_negative;
inline constexpr UnitInterval unit_interval;
inline constexpr NotEmpty not_empty;

template <typename Struct, typename T, typename CheckType>
struct Field {
  std::string_view name;
  T Struct::*member;
  std::string_view help;  // one sentence, with unit and special values
  CheckType check;
};

// For std::optional<T> the check is applied to the value that is there.
template <typename Struct, typename T, typename CheckType = NoCheck>
constexpr Field<Struct, T, CheckType> field(std::string_view name, T Struct::*member, std::string_view help,
                                            CheckType check = {}) {
  return {name, member, help, check};
}

template <typename Struct, typename... Fields>
constexpr std::tuple<Fields...> fields(Fields... rows) {
  return {rows...};
}

template <typename T>
concept Section = requires {
  T::fields();
};

// Names of an enum's values: a constexpr function found by ADL,
//   constexpr auto enum_names(Sampler) { return std::array{std::pair{Sampler::kEdmEuler, "edm_euler"}, ...}; }
template <typename T>
concept NamedEnum = std::is_enum_v<T> && requires(T value) {
  enum_names(value);
};

template <NamedEnum T>
constexpr std::string_view enum_name(T value) {
  for (const auto& [candidate, name] : enum_names(value)) {
    if (candidate == value) return name;
  }
  return "?";
}

// Problems found by check(): option (dotted, relative to the struct), what it is, what is wanted. All are reported at
// once.
struct Problem {
  std::string option;
  std::string got;
  std::string want;
  std::string hint;
};
using Problems = std::vector<Problem>;

}  // namespace dfm::config
