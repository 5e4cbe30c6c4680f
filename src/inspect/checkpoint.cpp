#include "inspect/checkpoint.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/checkpoint/extra_state.h"
#include "dfm/checkpoint/run_folder.h"
#include "dfm/checkpoint/tensor_file.h"
#include "dfm/config/value.h"
#include "inspect/tensors.h"

namespace dfm::inspect {
namespace {

namespace fs = std::filesystem;
namespace extra = checkpoint::extra;

constexpr const char* kLatestName = "latest_checkpointed_iteration.txt";

std::uint64_t bytes_in(const fs::path& folder) {
  std::uint64_t total = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file() && !entry.is_symlink()) total += entry.file_size();
  }
  return total;
}

// A YAML text as it stands, or the number or truth that it is.
Facts scalar_of(const config::Value& value) {
  if (value.kind == config::Value::Kind::kNull) return nullptr;
  if (value.kind == config::Value::Kind::kList) {
    Facts list = Facts::array();
    for (const config::Value& item : value.items) list.push_back(scalar_of(item));
    return list;
  }
  bool truth = false;
  std::int64_t integer = 0;
  double real = 0;
  if (config::read(value, truth)) return truth;
  if (config::read(value, integer)) return integer;
  if (config::read(value, real)) return real;
  return value.text;
}

void flatten(const config::Value& value, const std::string& prefix, Facts& facts) {
  for (const config::Value::Entry& entry : value.entries) {
    const std::string name = prefix.empty() ? entry.key : prefix + "." + entry.key;
    if (entry.value.kind == config::Value::Kind::kMap) {
      flatten(entry.value, name, facts);
    } else {
      facts[name] = scalar_of(entry.value);
    }
  }
}

void add_extra_state(Facts& facts, const fs::path& path) {
  const checkpoint::TensorFile file(path);
  Facts model = Facts::object(), training = Facts::object();
  for (const auto& [name, scalar] : file.scalars()) {
    const Facts value = std::visit([](const auto& v) { return Facts(v); }, scalar);
    const std::string prefix = extra::kModelPrefix;
    if (name == extra::kDatasetCard) {
      const Facts card = value.is_string() ? Facts::parse(value.get<std::string>(), nullptr, false) : Facts();
      facts["data_set"] = card.is_object() ? card : Facts{{"card", "damaged"}};
    } else if (name.starts_with(prefix)) {
      model[name.substr(prefix.size())] = value;
    } else if (name != extra::kWeightsId && name != extra::kOptimizerId) {
      training[name] = value;
    }
  }
  if (!model.empty()) facts["model"] = std::move(model);
  if (!training.empty()) facts["training"] = std::move(training);
}

// Runs `body`; the first error is the iteration's problem.
template <typename Body>
void note_problem(std::string& problem, Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    if (problem.empty()) problem = error.what();
  }
}

std::string status_of(const std::string& problem) { return problem.empty() ? "complete" : "damaged"; }

std::int64_t iteration_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  std::int64_t number = -1;
  if (name.starts_with("iter_")) std::from_chars(name.data() + 5, name.data() + name.size(), number);
  return number;
}

}  // namespace

bool is_iteration_folder(const fs::path& folder) {
  std::error_code ignored;
  return fs::is_regular_file(folder / extra::kWeightsFileName, ignored) ||
         fs::is_regular_file(folder / extra::kFileName, ignored);
}

bool is_run_folder(const fs::path& folder) {
  std::error_code ignored;
  if (fs::is_regular_file(folder / kLatestName, ignored)) return true;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    if (entry.path().filename().string().starts_with("iter_") && entry.is_directory(ignored)) return true;
  }
  return false;
}

Facts inspect_iteration(const fs::path& given, std::string& problem) {
  const fs::path folder = given.filename().empty() ? given.parent_path() : given;
  Facts facts{{"path", folder.string()}, {"kind", "checkpoint"}};
  facts["status"] = "";
  if (iteration_of(folder) >= 0) facts["iteration"] = iteration_of(folder);
  if (folder.extension() == ".tmp") {
    problem =
        fmt::format("checkpoint {}: got one that was not finished, want it whole; hint: use another", folder.string());
  } else if (iteration_of(folder) >= 0) {
    note_problem(problem, [&] { checkpoint::verify_iteration(folder); });
  }
  facts["bytes"] = bytes_in(folder);
  if (!problem.empty()) facts["problem"] = problem;
  std::error_code ignored;
  const fs::path state = folder / extra::kFileName, config = folder / extra::kConfigFileName;
  if (fs::exists(state, ignored)) note_problem(problem, [&] { add_extra_state(facts, state); });
  if (fs::exists(config, ignored)) {
    note_problem(problem, [&] {
      Facts values = Facts::object();
      flatten(config::parse_yaml(read_text_file(config), config.string()), "", values);
      facts["config"] = std::move(values);
    });
  }
  const fs::path weights = folder / extra::kWeightsFileName;
  if (fs::exists(weights, ignored)) {
    note_problem(problem, [&] {
      const checkpoint::TensorFile file(weights);
      std::vector<NamedShape> tensors;
      for (const auto& entry : file.entries()) {
        tensors.push_back({entry.name, entry.shape, entry.dtype});
      }
      add_tensors(facts, tensors);
    });
  }
  facts["status"] = folder.extension() == ".tmp" ? "unfinished" : status_of(problem);
  return facts;
}

Facts inspect_run(const fs::path& folder, std::string& problem) {
  Facts facts{{"path", folder.string()}, {"kind", "run"}, {"status", "complete"}};
  Facts rows = Facts::array();
  const auto iterations = checkpoint::complete_iterations(folder);
  std::string newest_problem;
  for (const checkpoint::IterationFolder& iteration : iterations) {
    std::string wrong;
    note_problem(wrong, [&] { checkpoint::verify_iteration(iteration.path); });
    Facts row{{"iteration", iteration.iteration}, {"bytes", bytes_in(iteration.path)}, {"status", status_of(wrong)}};
    if (!wrong.empty()) row["problem"] = wrong;
    rows.push_back(std::move(row));
    newest_problem = wrong;
  }
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const fs::path& path = entry.path();
    if (!path.filename().string().starts_with("iter_") || path.extension() != ".tmp") continue;
    rows.push_back({{"iteration", iteration_of(path)}, {"bytes", bytes_in(path)}, {"status", "unfinished"}});
  }
  facts["iterations"] = std::move(rows);
  if (fs::is_regular_file(folder / kLatestName, ignored)) {
    facts["latest"] = one_line(read_text_file(folder / kLatestName), 40);
  }
  if (iterations.empty()) {
    facts["status"] = "no complete iteration";
    problem = fmt::format("checkpoint {}: got a run folder without a complete iteration, want one", folder.string());
    return facts;
  }
  problem = newest_problem;
  if (!problem.empty()) facts["status"] = "newest iteration damaged";
  std::string again;
  Facts newest = inspect_iteration(iterations.back().path, again);
  for (const char* key : {"path", "kind", "status", "problem"}) newest.erase(key);
  facts["newest"] = std::move(newest);
  return facts;
}

void fold_config(Facts& facts) {
  if (facts.contains("newest")) fold_config(facts["newest"]);
  if (!facts.contains("config") || facts.value("kind", "") == "folder of weights") return;
  constexpr std::array kShown{"mixed_precision",
                              "rng.seed",
                              "train.train_iters",
                              "train.global_batch_size",
                              "train.micro_batch_size",
                              "optimizer.lr",
                              "optimizer.min_lr",
                              "optimizer.weight_decay",
                              "scheduler.lr_warmup_iters",
                              "scheduler.lr_decay_style",
                              "dataset.path",
                              "dataset.task_encoder_seq_length",
                              "model.tensor_model_parallel_size",
                              "model.context_parallel_size"};
  Facts shown = Facts::object();
  for (const char* name : kShown) {
    if (facts["config"].contains(name)) shown[name] = facts["config"][name];
  }
  facts["config"] = std::move(shown);
}

}  // namespace dfm::inspect
