#include "dfm/inspect/inspect.h"

#include <algorithm>
#include <optional>

#include "dfm/base/file.h"
#include "inspect/checkpoint.h"
#include "inspect/dataset.h"
#include "inspect/decode.h"
#include "inspect/tensors.h"

namespace dfm::inspect {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostText = 120;  // bytes of a value for people

bool is_yaml(const fs::path& path) { return path.extension() == ".yaml" || path.extension() == ".yml"; }
bool is_tar(const fs::path& path) { return path.extension() == ".tar"; }

fs::path folder_of(const fs::path& path) {
  if (fs::is_directory(path)) return path;
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

std::vector<TarSample> samples_of(const fs::path& path) {
  return is_tar(path) ? list_samples(path) : list_samples(list_tars(path));
}

const TarSample& find_sample(const std::vector<TarSample>& samples, const std::string& key, const fs::path& path) {
  const auto found = std::find_if(samples.begin(), samples.end(), [&](const TarSample& s) { return s.key == key; });
  if (found != samples.end()) return *found;
  std::vector<std::string> keys;
  for (const TarSample& sample : samples) keys.push_back(sample.key);
  const std::string nearest = nearest_name(key, keys);
  throw DataError("sample {}: got no such key in {} ({} samples), want one{}", key, path.string(), keys.size(),
                  nearest.empty() ? (keys.empty() ? "" : fmt::format(" like {}", keys.front()))
                                  : fmt::format("; hint: did you mean '{}'", nearest));
}

void require_exists(const fs::path& path) {
  std::error_code ignored;
  if (path.empty()) {
    throw ConfigError(
        "path: got nothing, want a data set, a checkpoint or a file of weights; hint: dfm inspect "
        "butterfly_webdataset");
  }
  if (fs::exists(path, ignored)) return;
  throw DataError("{}: got no such file or folder, want a data set, a checkpoint or a file of weights", path.string());
}

struct Inspected {
  Facts facts;
  std::string problem;
  ExitCode code = ExitCode::kData;  // of the problem
  bool is_dataset = false;
};

Inspected inspect_folder(const InspectOptions& options) {
  const fs::path& path = options.path;
  Inspected found;
  if (is_iteration_folder(path) || path.filename().string().starts_with("iter_")) {
    found.code = ExitCode::kCheckpoint;
    found.facts = inspect_iteration(path, found.problem);
  } else if (is_run_folder(path)) {
    found.code = ExitCode::kCheckpoint;
    found.facts = inspect_run(path, found.problem);
  } else if (is_dataset_folder(path)) {
    found.is_dataset = true;
    found.facts = inspect_dataset(options, found.problem);
  } else if (is_encoder_folder(path)) {
    found.facts = inspect_encoder_folder(path);
  } else {
    throw DataError(
        "{}: got a folder without shards (*.tar), checkpoints (iter_*) or weights (config.json, *.safetensors, *.jit), "
        "want one of them",
        path.string());
  }
  return found;
}

Inspected inspect_path(const InspectOptions& options) {
  const fs::path& path = options.path;
  if (fs::is_directory(path)) return inspect_folder(options);
  Inspected found;
  found.is_dataset = is_tar(path) || is_yaml(path);
  if (is_tar(path)) {
    found.facts = inspect_tar(options, found.problem);
  } else if (is_yaml(path)) {
    found.facts = inspect_dataset(options, found.problem);
  } else {
    found.facts = inspect_file(path);
  }
  return found;
}

// Without what is too long to read.
void shorten(Facts& facts) {
  for (auto& [key, value] : facts.items()) {
    if (value.is_structured()) {
      shorten(value);
    } else if (value.is_string() && key != "problem" && key != "caption" && key != "hint") {
      value = one_line(value.get<std::string>(), kMostText);
    }
  }
}

std::string text_for_people(Facts facts) {
  fold_config(facts);
  fold_tensors(facts);
  if (facts.contains("newest")) fold_tensors(facts["newest"]);
  shorten(facts);
  return to_text(facts);
}

Facts inspect_one(const InspectOptions& options, const std::vector<TarSample>& samples, Inspected& found) {
  try {
    return inspect_sample(samples.front());
  } catch (const DataError& error) {
    found.problem = error.what();
    return {{"path", samples.front().shard.string()},
            {"kind", "sample"},
            {"status", "damaged"},
            {"key", options.sample},
            {"problem", found.problem}};
  }
}

}  // namespace

void InspectOptions::check(config::Problems& problems) const {
  const std::string extension = decode.extension().string();
  if (!decode.empty() && extension != ".png" && extension != ".mp4") {
    problems.push_back({"decode", decode.string(), "NAME.png or NAME.mp4", ""});
  }
}

Report run(const InspectOptions& options, at::Device device) {
  require_exists(options.path);
  const bool wants_samples = !options.sample.empty() || !options.decode.empty();
  Inspected found;
  if (!wants_samples) {
    found = inspect_path(options);
  } else {
    if (!is_tar(options.path) && !(fs::is_directory(options.path) && is_dataset_folder(options.path))) {
      throw DataError("{}: got no folder of shards and no tar, want one for --{}", options.path.string(),
                      options.sample.empty() ? "decode" : "sample");
    }
    std::vector<TarSample> samples = samples_of(options.path);
    if (samples.empty()) throw DataError("{}: got no sample, want at least one", options.path.string());
    if (!options.sample.empty()) {
      samples = {find_sample(samples, options.sample, options.path)};
      found.facts = inspect_one(options, samples, found);
    } else {
      found.facts = {{"path", options.path.string()}, {"kind", "data set"}, {"num_samples", samples.size()}};
    }
    if (!options.decode.empty() && found.problem.empty()) {
      if (options.decode.extension() == ".png") {
        std::vector<TarSample> chosen;
        for (const std::size_t i : spread(samples.size(), static_cast<std::size_t>(options.num_samples))) {
          chosen.push_back(samples[i]);
        }
        samples = std::move(chosen);
      }
      const auto card = data::load_card(folder_of(options.path));
      if (!card && options.tokenizer.empty()) {
        throw ConfigError(
            "tokenizer: got none, as {} has no {}, want the one that the samples were made with; hint: --tokenizer "
            "NAME",
            folder_of(options.path).string(), data::DatasetCard::kFileName);
      }
      found.facts["decoded"] = decode_samples(samples, card.value_or(data::DatasetCard{}), options, device);
    }
  }
  Report report;
  report.problem = found.problem;
  if (!found.problem.empty()) report.code = found.code;
  report.text = options.json ? found.facts.dump(2, ' ', false, Facts::error_handler_t::replace) + "\n"
                             : text_for_people(std::move(found.facts));
  return report;
}

}  // namespace dfm::inspect
