#include "models/encoder_files.h"

#include <fmt/ranges.h>

#include <functional>
#include <optional>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/formats/hub.h"
#include "dfm/formats/weights.h"

namespace dfm::models {
namespace fs = std::filesystem;

namespace {

// The file of a folder or repository by its path within, or nothing.
using FindFile = std::function<std::optional<fs::path>(const std::string& file)>;

FindFile files_of(const EncoderPlace& place, const fs::path& hub_cache) {
  if (!place.path.empty()) {
    const fs::path folder = fs::is_directory(place.path) ? place.path : place.path.parent_path();
    return [folder](const std::string& file) -> std::optional<fs::path> {
      if (!fs::exists(folder / file)) return std::nullopt;
      return folder / file;
    };
  }
  const formats::Hub hub(formats::HubSettings::from_environment(hub_cache));
  const formats::HubRepo repo{formats::HubRepo::Kind::kModel, place.name, "main"};
  return [hub, repo](const std::string& file) { return hub.fetch_if_there(repo, file); };
}

// The first of `files` that is there. DataError: none.
fs::path need(const FindFile& find, const std::string& name, const std::vector<std::string>& files, const char* what) {
  for (const std::string& file : files) {
    if (const auto path = find(file)) return *path;
  }
  throw DataError("{}: got no {}, want one of {}", name, what, fmt::join(files, ", "));
}

// Weights in one file, or an index, whose files are fetched as well.
fs::path need_weights(const FindFile& find, const std::string& name, const std::string& folder,
                      const std::vector<std::string>& files) {
  std::vector<std::string> full;
  for (const std::string& file : files) full.push_back(folder + file);
  const fs::path path = need(find, name, full, "weights");
  if (path.extension() != ".json") return path;
  for (const std::string& shard : formats::index_files(path)) need(find, name, {folder + shard}, "part of the weights");
  return path;
}

bool is_file(const EncoderPlace& place) { return !place.path.empty() && !fs::is_directory(place.path); }

// Pipelines of diffusers keep their parts in folders of their own, named by model_index.json.
std::string part_folder(const FindFile& find, const std::string& part) {
  return find("model_index.json") ? part + "/" : "";
}

}  // namespace

EncoderPlace place_of(const std::string& name, const char* what) {
  if (fs::exists(name)) {
    const fs::path path = fs::canonical(name);
    return {path.string(), path};
  }
  if (formats::is_hub_id(name)) return {name, {}};
  throw ConfigError("{}: got {}, want builtin, a folder or file that is there, or a repository of the hub (owner/name)",
                    what, name.empty() ? "no name" : name);
}

TextEncoderFiles find_text_encoder(const EncoderPlace& place, const fs::path& hub_cache) {
  const FindFile find = files_of(place, hub_cache);
  TextEncoderFiles files;
  files.name = place.name;
  std::string folder;
  auto config = find("config.json");
  if (!config) {
    folder = part_folder(find, "text_encoder");
    config = need(find, place.name, {folder + "config.json"}, "configuration");
  }
  files.config = *config;
  const std::vector<std::string> tokenizers = {"spiece.model", "tokenizer.json"};
  std::vector<std::string> candidates;
  for (const std::string& file : tokenizers) candidates.push_back((folder.empty() ? "" : "tokenizer/") + file);
  // A pipeline's text_encoder/ given by itself: the tokenizer lies beside it.
  if (folder.empty() && !place.path.empty()) {
    for (const std::string& file : tokenizers) candidates.push_back("../tokenizer/" + file);
  }
  files.tokenizer = need(find, place.name, candidates, "tokenizer");
  files.weights = is_file(place) ? place.path
                                 : need_weights(find, place.name, folder,
                                                {"model.safetensors", "model.safetensors.index.json",
                                                 "pytorch_model.bin", "pytorch_model.bin.index.json"});
  return files;
}

CosmosFiles find_tokenizer(const EncoderPlace& place, const fs::path& hub_cache) {
  const FindFile find = files_of(place, hub_cache);
  CosmosFiles files;
  files.name = place.name;
  const auto optional = [&](const std::string& file) { return find(file).value_or(fs::path()); };
  const bool names_half =
      is_file(place) && (place.path.filename() == "encoder.jit" || place.path.filename() == "decoder.jit");
  if (is_file(place) && !names_half) {
    files.weights = place.path;
    files.config = optional("config.json");
    files.mean_std = optional("mean_std.pt");
    return files;
  }
  if (const auto encoder = find("encoder.jit")) {
    files.encoder_jit = *encoder;
    files.decoder_jit = need(find, place.name, {"decoder.jit"}, "decoder");
    files.mean_std = optional("mean_std.pt");
    files.config = optional("config.json");
    return files;
  }
  std::string folder;
  auto config = find("config.json");
  if (!config) {
    folder = part_folder(find, "vae");
    config = find(folder + "config.json");
  }
  if (!config) {
    throw DataError(
        "{}: got no tokenizer, want encoder.jit and decoder.jit, or config.json and "
        "diffusion_pytorch_model.safetensors",
        place.name);
  }
  files.config = *config;
  files.weights =
      need_weights(find, place.name, folder,
                   {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"});
  return files;
}

}  // namespace dfm::models
