#pragma once
// Values from several places into one struct, each with its origin; all errors are kept and reported together.
//
//   config::Merge merge(&bridge_names());
//   config::Tree tree = config::tree_of(config);
//   merge.yaml(tree, text, "my.yaml");
//   merge.override_value(tree, "model.num_layers=6");
//   merge.check(tree);
//   merge.finish();   // ConfigError, one line an error
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dfm/config/tree.h"

namespace dfm::config {

// Names that another program's files have and that mean nothing here: accepted, with one warning that lists them.
// A name is an option ("model.qkv_format"), a whole section ("ddp"), a group ("logger.wandb_*") or a key anywhere
// ("*._target_").
struct ForeignName {
  std::string_view name;
  std::string_view reason;
  // "": any value. Else the values that leave the run as it is ("null|false"); any other is an error.
  std::string_view accepted = "";
};
struct AliasName {
  std::string_view name;
  std::string_view meant;
};
struct ForeignTable {
  std::span<const ForeignName> names;
  std::span<const AliasName> aliases;

  [[nodiscard]] const ForeignName* find(std::string_view name) const;
};

// What is wrong with a name, for options, flags and subcommands alike: `<name>: got no such <kind>, want <want>
// (<where>); hint: did you mean '<nearest>'`.
std::string unknown_name_error(const std::string& name, const std::string& kind, const std::string& want,
                               const std::string& where, const std::string& nearest);

class Merge {
 public:
  explicit Merge(const ForeignTable* foreign = nullptr) : foreign_(foreign) {}

  // A YAML document of sections; `where` is the file's name.
  void yaml(const Tree& tree, std::string_view text, const std::string& where);
  // `section.option=value`, as on the command line; Hydra's leading + or ++ is taken too.
  void override_value(const Tree& tree, std::string_view text);
  // One option. `label` is its name in messages: the flag on a command line.
  void value(const Tree& tree, const std::string& name, const Value& value, const std::string& where,
             const std::string& label = "");
  // Gives every option whose text differs from `before` the origin `where`.
  void mark_changed(const Tree& tree, const Values& before, const std::string& where);
  // Field checks and the structs' rules. `flags`: options are named as flags in messages.
  void check(const Tree& tree, bool flags = false);
  void mark_origin(const std::string& name, const std::string& where) { origins_[name] = where; }
  void add_error(std::string line) { errors_.push_back(std::move(line)); }
  // ConfigError that holds every error, a line each.
  void finish() const;

  [[nodiscard]] const Origins& origins() const { return origins_; }
  [[nodiscard]] const std::vector<std::string>& errors() const { return errors_; }
  // "" or one line that lists the foreign names that were given.
  [[nodiscard]] std::string foreign_warning() const;

 private:
  void assign(const Tree& tree, const std::string& name, const Value& value, const std::string& where);
  void walk(const Tree& tree, const Value& map, const std::string& prefix, const std::string& file,
            std::map<std::string, std::string>& seen);
  void unknown(const Tree& tree, const std::string& name, const std::string& where);
  bool take_foreign(const std::string& name, const Value& value, const std::string& where);

  const ForeignTable* foreign_;
  Origins origins_;
  std::vector<std::string> errors_;
  std::vector<std::string> failed_options_;  // have an error already: no second one from check()
  std::vector<const ForeignName*> foreign_rows_;
  std::vector<std::string> foreign_names_;
};

// Reads one document into `object` and throws what is wrong with it; check rules are not applied.
template <Section T>
void merge_yaml(T& object, Origins& origins, std::string_view text, const std::string& where,
                const ForeignTable* foreign = nullptr) {
  Merge merge(foreign);
  merge.yaml(tree_of(object), text, where);
  merge.finish();
  for (const auto& [name, origin] : merge.origins()) origins[name] = origin;
}

// Throws ConfigError with every failed check.
template <Section T>
void validate(const T& object, const Origins& origins = {}) {
  T copy = object;
  const Tree tree = tree_of(copy);
  Merge merge;
  for (const auto& [name, origin] : origins) merge.mark_origin(name, origin);
  merge.check(tree);
  merge.finish();
}

}  // namespace dfm::config
