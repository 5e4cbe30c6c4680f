#include "inspect/shards.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/media.h"
#include "dfm/formats/tar.h"
#include "dfm/formats/torch_file.h"

namespace dfm::inspect {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostText = 2000;

at::Tensor without_batch(const at::Tensor& stored, std::int64_t dims, const std::string& name, const char* want) {
  if (stored.is_floating_point() && stored.dim() == dims && stored.numel() > 0) return stored;
  if (stored.is_floating_point() && stored.dim() == dims + 1 && stored.size(0) == 1 && stored.numel() > 0) {
    return stored.squeeze(0);
  }
  throw DataError("{}: got shape {}, want {}", name, Facts(stored.sizes().vec()).dump(), want);
}

std::int64_t used_rows(const at::Tensor& text_LE) {
  const at::Tensor used = text_LE.ne(0).any(1).nonzero();
  return used.size(0) == 0 ? 0 : used[-1].item<std::int64_t>() + 1;
}

bool is_picture(const std::string& part) {
  return part == "jpg" || part == "jpeg" || part == "png" || part == "JPG" || part == "PNG";
}

Facts channel_rows(const at::Tensor& latent_CTHW) {
  const at::Tensor values_CN = latent_CTHW.to(at::kDouble).flatten(1);
  const at::Tensor mean = values_CN.mean(1), std = values_CN.std(1, /*unbiased=*/false);
  Facts means = Facts::array(), stds = Facts::array();
  for (std::int64_t c = 0; c < mean.size(0); ++c) {
    means.push_back(mean[c].item<double>());
    stds.push_back(std[c].item<double>());
  }
  return {{"mean", means}, {"std", stds}};
}

}  // namespace

const TarSample::Part* TarSample::find(const std::string& part) const {
  const auto found = std::find_if(parts.begin(), parts.end(), [&](const Part& p) { return p.name == part; });
  return found == parts.end() ? nullptr : &*found;
}

bool TarSample::is_prepared() const {
  return find("json") != nullptr && find("pth") != nullptr && find("pickle") != nullptr;
}

std::string TarSample::read(const Part& part) const {
  std::string bytes(part.size, '\0');
  File(shard, File::Mode::kRead).read_at(part.offset, {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()});
  return bytes;
}

std::string TarSample::name_of(const Part& part) const {
  return fmt::format("{}: {}.{}", shard.string(), key, part.name);
}

std::vector<fs::path> list_tars(const fs::path& folder) {
  std::vector<fs::path> tars;
  for (auto entry = fs::recursive_directory_iterator(folder); entry != fs::recursive_directory_iterator(); ++entry) {
    const bool is_hidden = entry->path().filename().string().starts_with(".");
    if (entry->is_directory() && is_hidden) entry.disable_recursion_pending();
    if (entry->is_regular_file() && !is_hidden && entry->path().extension() == ".tar") tars.push_back(entry->path());
  }
  std::sort(tars.begin(), tars.end());
  return tars;
}

std::vector<TarSample> list_samples(const fs::path& tar) {
  std::vector<TarSample> samples;
  for (const formats::TarMember& member : formats::list_tar(tar)) {
    const std::optional<formats::SampleName> name = formats::split_sample_name(member.name);
    if (!name) continue;
    if (samples.empty() || samples.back().key != name->key) {
      samples.emplace_back().key = name->key;
      samples.back().shard = tar;
    }
    samples.back().parts.push_back({name->part, member.data_offset, member.size});
  }
  return samples;
}

std::vector<TarSample> list_samples(const std::vector<fs::path>& tars) {
  std::vector<TarSample> all;
  for (const fs::path& tar : tars) {
    for (TarSample& sample : list_samples(tar)) all.push_back(std::move(sample));
  }
  return all;
}

StoredSample read_stored(const TarSample& sample) {
  StoredSample stored;
  if (const TarSample::Part* part = sample.find("json")) {
    const Facts json = Facts::parse(sample.read(*part), nullptr, false);
    if (!json.is_object()) throw DataError("{}: got text that is no JSON object, want one", sample.name_of(*part));
    stored.json = json;
    if (const auto fps = json.find("fps"); fps != json.end() && fps->is_number()) stored.fps = fps->get<double>();
    if (const auto caption = json.find("caption"); caption != json.end() && caption->is_string()) {
      stored.caption = caption->get<std::string>();
    }
  }
  if (const TarSample::Part* part = sample.find("pth")) {
    const std::string bytes = sample.read(*part), name = sample.name_of(*part);
    stored.latent_CTHW =
        without_batch(formats::load_pth_tensor(as_bytes(bytes), name), 4, name, "a latent [1, C, T, H, W]");
  }
  if (const TarSample::Part* part = sample.find("pickle")) {
    const std::string bytes = sample.read(*part), name = sample.name_of(*part);
    stored.text_LE = without_batch(formats::load_pickle_tensor(as_bytes(bytes), name), 2, name, "text [1, L, E]");
    stored.text_length = used_rows(stored.text_LE);
  }
  return stored;
}

Facts inspect_sample(const TarSample& sample) {
  Facts facts{{"path", sample.shard.string()}, {"kind", "sample"}, {"key", sample.key}};
  const StoredSample stored = read_stored(sample);
  if (!stored.caption.empty()) facts["caption"] = stored.caption;
  Facts parts = Facts::array();
  for (const TarSample::Part& part : sample.parts) {
    parts.push_back({{"part", part.name}, {"bytes", part.size}});
    if (is_picture(part.name)) {
      const std::string bytes = sample.read(part);
      const formats::ImageSize size = formats::read_image_size(as_bytes(bytes), sample.name_of(part));
      facts["picture"] = {{"height", size.height}, {"width", size.width}};
    } else if (part.name == "txt") {
      facts["text_part"] = one_line(sample.read(part), kMostText);
    }
  }
  facts["parts"] = std::move(parts);
  if (!stored.json.empty()) {
    facts["json"] = stored.json;
    facts["json"].erase("caption");
  }
  if (stored.latent_CTHW.defined()) {
    facts["latent"] = describe_tensor(stored.latent_CTHW);
    facts["latent_channels"] = channel_rows(stored.latent_CTHW);
  }
  if (stored.text_LE.defined()) {
    // Of the rows that are used; the others are zero.
    facts["text"] = describe_tensor(stored.text_LE.slice(0, 0, stored.text_length));
    facts["text"]["shape"] = stored.text_LE.sizes().vec();
    facts["text"]["rows_used"] = stored.text_length;
  }
  return facts;
}

}  // namespace dfm::inspect
