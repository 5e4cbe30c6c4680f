#include "data/raw_webdataset_source.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_set>

#include "data/media_loading.h"
#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/tar.h"

namespace dfm::data {
namespace {

constexpr std::uint64_t kMaxMediaBytes = std::uint64_t{2} << 30;
constexpr std::uint64_t kMaxTextBytes = std::uint64_t{16} << 20;
constexpr std::array<const char*, 5> kCaptionFields{"caption", "text", "prompt", "description", "title"};

// Python's webdataset compares parts without regard to capitals, too.
std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

struct Part {
  std::uint64_t offset = 0, size = 0;  // 0: not there
};
struct Sample {
  std::uint32_t tar = 0;
  MediaKind kind = MediaKind::kOther;
  std::string key;
  Part media, text, json;
};

class RawWebdatasetSource : public Source {
 public:
  RawWebdatasetSource(std::string name, std::vector<NamedFile> tars, const SourceOptions& options);
  [[nodiscard]] std::size_t size() const override { return samples_.size(); }
  [[nodiscard]] std::string name(std::size_t index) const override {
    const Sample& sample = samples_.at(index);
    return tars_[sample.tar].name + ":" + sample.key;
  }
  [[nodiscard]] SourceItem item(std::size_t index) const override {
    return {name(index), caption_of(index), samples_.at(index).kind == MediaKind::kClip};
  }
  [[nodiscard]] std::int64_t num_pixels(std::size_t index, const LoadLimits& limits) const override;
  [[nodiscard]] SourceMedia load(std::size_t index, const LoadLimits& limits) const override {
    return load_media(read_media(index, kMaxMediaBytes), limits);
  }
  [[nodiscard]] std::string description() const override {
    return fmt::format("webdataset {}: {} tars, {} pictures, {} clips", name_, tars_.size(),
                       samples_.size() - num_clips_, num_clips_);
  }
  [[nodiscard]] std::string default_encoder() const override { return ""; }

 private:
  void list(std::uint32_t tar);
  void take(Sample& sample, const std::string& part, const formats::TarMember& member);
  [[nodiscard]] std::string read(const Sample& sample, const Part& part, std::uint64_t most) const;
  [[nodiscard]] Media read_media(std::size_t index, std::uint64_t most) const;
  [[nodiscard]] std::optional<std::string> caption_of(std::size_t index) const;

  std::string name_;
  std::vector<NamedFile> tars_;
  std::string image_part_, caption_part_;  // as the user names them, in lower case; empty: what is there
  std::string caption_field_;
  std::vector<Sample> samples_;
  std::set<std::string> parts_seen_;
  std::size_t num_clips_ = 0;
};

RawWebdatasetSource::RawWebdatasetSource(std::string name, std::vector<NamedFile> tars, const SourceOptions& options)
    : name_(std::move(name)),
      tars_(std::move(tars)),
      image_part_(lower(options.image_column)),
      caption_part_(lower(options.caption_column)),
      caption_field_(options.caption_column) {
  for (std::size_t tar = 0; tar < tars_.size(); ++tar) list(static_cast<std::uint32_t>(tar));
  if (samples_.empty()) {
    throw DataError("{}: got no sample with {}, want .jpg, .png or .mp4 (parts: {}); hint: --image-column PART", name_,
                    image_part_.empty() ? "a picture or clip" : "." + image_part_, fmt::join(parts_seen_, ", "));
  }
  // A sample with .json is asked for the field, and its error lists the fields there are.
  const bool has_caption = std::any_of(samples_.begin(), samples_.end(), [](const Sample& sample) {
    return sample.text.offset != 0 || sample.json.offset != 0;
  });
  if (!caption_part_.empty() && !has_caption) {
    throw DataError("{}: got no sample with .{} or .json, want captions there (parts: {}); hint: --caption-column PART",
                    name_, caption_part_, fmt::join(parts_seen_, ", "));
  }
  num_clips_ = static_cast<std::size_t>(std::count_if(
      samples_.begin(), samples_.end(), [](const Sample& sample) { return sample.kind == MediaKind::kClip; }));
}

void RawWebdatasetSource::take(Sample& sample, const std::string& part, const formats::TarMember& member) {
  const Part place{member.data_offset, member.size};
  const MediaKind kind = kind_of_name("x." + part);
  const bool is_media = image_part_.empty() ? kind != MediaKind::kOther : part == image_part_;
  // The first picture or clip of a sample counts, unless the user names another.
  if (is_media && sample.media.offset == 0) {
    sample.media = place;
    sample.kind = kind;
  } else if (part == "json") {
    sample.json = place;
  }
  if (part == (caption_part_.empty() ? "txt" : caption_part_)) sample.text = place;
}

void RawWebdatasetSource::list(std::uint32_t tar) {
  const std::string path = tars_[tar].path.string();
  std::unordered_set<std::string> keys;
  Sample sample;
  std::set<std::string> parts;  // of the sample
  const auto end_sample = [&] {
    if (parts.contains("pth") && parts.contains("pickle")) {
      throw DataError(
          "{}: got latents that are prepared already (.pth and .pickle), want pictures or clips; hint: "
          "`dfm train --dataset-path {}`",
          path, name_);
    }
    if (sample.media.offset != 0) {
      if (!keys.insert(sample.key).second) throw DataError("{}: got sample {} twice, want it once", path, sample.key);
      samples_.push_back(sample);
    }
    parts_seen_.insert(parts.begin(), parts.end());
    parts.clear();
  };
  for (const formats::TarMember& member : formats::list_tar(tars_[tar].path)) {
    const std::optional<formats::SampleName> found = formats::split_sample_name(member.name);
    if (!found) continue;
    if (parts.empty() || sample.key != found->key) {
      if (!parts.empty()) end_sample();
      sample = {.tar = tar, .kind = MediaKind::kOther, .key = found->key, .media = {}, .text = {}, .json = {}};
    }
    const std::string part = lower(found->part);
    parts.insert(part);
    take(sample, part, member);
  }
  if (!parts.empty()) end_sample();
}

std::string RawWebdatasetSource::read(const Sample& sample, const Part& part, std::uint64_t most) const {
  std::string bytes(std::min(part.size, most), '\0');
  File(tars_[sample.tar].path, File::Mode::kRead).read_at(part.offset, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

Media RawWebdatasetSource::read_media(std::size_t index, std::uint64_t most) const {
  const Sample& sample = samples_.at(index);
  if (sample.media.size > kMaxMediaBytes) {
    throw DataError("{}: got {} bytes, want at most {}", name(index), sample.media.size, kMaxMediaBytes);
  }
  Media media = media_bytes(name(index), read(sample, sample.media, most));
  if (sample.kind != MediaKind::kOther) media.kind = sample.kind;
  return media;
}

std::int64_t RawWebdatasetSource::num_pixels(std::size_t index, const LoadLimits& limits) const {
  // A picture's header lies within its first bytes, behind at most some pages of camera data.
  constexpr std::uint64_t kHeaderBytes = 256 << 10;
  const bool is_clip = samples_.at(index).kind == MediaKind::kClip;
  try {
    const std::int64_t pixels = num_media_pixels(read_media(index, is_clip ? kMaxMediaBytes : kHeaderBytes), limits);
    if (pixels != 0 || is_clip || samples_[index].media.size <= kHeaderBytes) return pixels;
    return num_media_pixels(read_media(index, kMaxMediaBytes), limits);
  } catch (const DataError&) {
    return 0;  // load() says why
  }
}

std::optional<std::string> RawWebdatasetSource::caption_of(std::size_t index) const {
  const Sample& sample = samples_.at(index);
  if (sample.text.offset != 0) {
    const std::string where = name(index) + "." + (caption_part_.empty() ? "txt" : caption_part_);
    return clean_caption(read(sample, sample.text, kMaxTextBytes), where);
  }
  if (sample.json.offset == 0) return std::nullopt;
  const std::string where = name(index) + ".json";
  const nlohmann::json json = nlohmann::json::parse(read(sample, sample.json, kMaxTextBytes), nullptr, false);
  if (!json.is_object()) throw DataError("{}: got text that is no JSON object, want one", where);
  const auto field = [&](const std::string& name) -> std::optional<std::string> {
    const auto it = json.find(name);
    return it != json.end() && it->is_string() ? clean_caption(it->get<std::string>(), where) : std::nullopt;
  };
  if (!caption_field_.empty()) {
    if (json.contains(caption_field_)) return field(caption_field_);
    std::vector<std::string> keys;
    for (const auto& item : json.items()) keys.push_back(item.key());
    throw DataError("{}: got no field {}, want one of: {}; hint: --caption-column NAME", where, caption_field_,
                    fmt::join(keys, ", "));
  }
  for (const char* name : kCaptionFields) {
    if (const auto caption = field(name)) return caption;
  }
  return std::nullopt;
}

}  // namespace

std::unique_ptr<Source> open_raw_webdataset(const std::string& name, const std::vector<NamedFile>& tars,
                                            const SourceOptions& options) {
  return std::make_unique<RawWebdatasetSource>(name, tars, options);
}

}  // namespace dfm::data
