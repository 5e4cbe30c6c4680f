// Sources other than plain folders: ImageFolder metadata, csv tables, webdatasets of raw media, repositories of the
// hub.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "data/hub_files.h"
#include "data/table.h"
#include "dfm/base/file.h"
#include "dfm/data/source.h"
#include "dfm/formats/media.h"
#include "dfm/formats/tar.h"
#include "formats/media_files.h"

namespace dfm::data {
namespace {

using test::error_of;
using test::MediaFolder;
using test::smooth_clip;
using test::smooth_picture;
using test::write_bytes;
using Names = std::vector<std::string>;

// A variable of the environment, for one test.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
  ~Variable() { ::unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

void write_picture(const std::filesystem::path& path, std::int64_t height, std::int64_t width) {
  std::filesystem::create_directories(path.parent_path());
  formats::write_png(path, smooth_picture(height, width));
}

void write_clip(const std::filesystem::path& path) {
  std::filesystem::create_directories(path.parent_path());
  formats::write_mp4(path, smooth_clip(5, 32, 32), {.fps = 10});
}

std::unique_ptr<Source> open(const std::filesystem::path& path, const std::string& caption = "",
                             const std::string& image = "") {
  return open_source(
      {.input = path.string(), .seed = 1, .image_column = image, .caption_column = caption, .hub_cache = {}});
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

at::Tensor pixels_of(const Source& source, std::size_t index, std::int64_t side = 32) {
  LoadLimits limits;
  limits.short_side = side;
  return source.load(index, limits).rgb_THW3;
}

TEST(ImageFolder, TakesCaptionsFromJsonLines) {
  const MediaFolder folder;
  write_picture(folder / "a.png", 32, 32);
  write_picture(folder / "sub/b.png", 32, 48);
  write_picture(folder / "sub/c.png", 32, 48);
  write_picture(folder / "d.png", 32, 48);
  write_bytes(folder / "a.txt", "beside, not taken");
  write_bytes(folder / "d.txt", "beside");
  write_bytes(folder / "metadata.jsonl",
              "{\"file_name\": \"a.png\", \"text\": \" from a\\nrow \", \"width\": 3}\n\n"
              "{\"file_name\": \"sub/../sub/c.png\", \"text\": null}\n");
  write_bytes(folder / "sub/metadata.csv", "text,file_name\n\"b, quoted\",b.png\n");
  const auto source = open(folder.path());
  ASSERT_EQ(source->size(), 4U);
  EXPECT_EQ(source->item(0).caption, "from a\nrow");
  EXPECT_EQ(source->item(1).name, "d.png");
  EXPECT_EQ(source->item(1).caption, "beside");
  EXPECT_EQ(source->item(2).caption, "b, quoted");
  EXPECT_FALSE(source->item(3).caption);
}

TEST(ImageFolder, TakesTheColumnThatIsAskedFor) {
  const MediaFolder folder;
  write_picture(folder / "a.png", 32, 32);
  write_bytes(folder / "metadata.jsonl", R"({"file_name": "a.png", "text": "one", "caption": "two", "score": 4})");
  EXPECT_EQ(open(folder.path(), "caption")->item(0).caption, "two");
  EXPECT_EQ(open(folder.path(), "score")->item(0).caption, "4");
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { open(folder.path()); }), "(caption, text)"));
  const std::string message = error_of(ExitCode::kData, [&] { open(folder.path(), "nothing"); });
  EXPECT_TRUE(contains(message, "nothing") && contains(message, "text")) << message;
}

TEST(ImageFolder, NamesTheLineThatIsWrong) {
  const MediaFolder folder;
  write_picture(folder / "a.png", 32, 32);
  const auto message_of = [&](const std::string& name, std::string_view text) {
    write_bytes(folder / name, text);
    const std::string message = error_of(ExitCode::kData, [&] { open(folder.path()); });
    std::filesystem::remove(folder / name);
    return message;
  };
  const std::string good = "{\"file_name\": \"a.png\", \"text\": \"x\"}\n";
  EXPECT_TRUE(contains(message_of("metadata.jsonl", good + "{\"file_name\""), "line 2"));
  EXPECT_TRUE(contains(message_of("metadata.jsonl", good + "[]"), "line 2"));
  EXPECT_TRUE(contains(message_of("metadata.jsonl", "{\"name\": \"a.png\", \"text\": \"x\"}"), "columns: name, text"));
  EXPECT_TRUE(contains(message_of("metadata.jsonl", good + "{\"file_name\": \"a.png\", \"text\": \"y\"}"), "line 1"));
  EXPECT_TRUE(contains(message_of("metadata.csv", "a.png,some text\n"), "got no column file_name, want one of: a.png"));
  EXPECT_TRUE(contains(message_of("metadata.csv", "file_name,text\na.png\n"), "row 1"));
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { open(folder.path(), "text"); }), "metadata.jsonl"));
  // A caption of broken bytes is the row's own matter.
  write_bytes(folder / "metadata.csv", "file_name,text\na.png,\xFF\xFE\n");
  const auto source = open(folder.path());
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { source->item(0); }), "row 1"));
}

TEST(CsvTable, FindsWebVidsClips) {
  const MediaFolder folder;
  write_clip(folder / "000001_000050/11.mp4");
  write_clip(folder / "videos/000001_000050/12.mp4");
  write_clip(folder / "13.mp4");
  write_bytes(folder / "results.csv",
              "videoid,contentUrl,duration,page_dir,name\n"
              "11,http://host.invalid/11.mp4,PT00H00M05S,000001_000050,\"One, with a comma\"\n"
              "12,http://host.invalid/12.mp4,PT00H00M05S,000001_000050,Two\n"
              "13,http://host.invalid/13.mp4,PT00H00M05S,000051_000100,Three\n"
              "14,http://host.invalid/14.mp4,PT00H00M05S,000051_000100,Four\n");
  const Variable offline("HF_HUB_OFFLINE", "1");
  const auto source = open(folder / "results.csv");
  ASSERT_EQ(source->size(), 4U);
  EXPECT_EQ(source->name(0), "results.csv:00000000");
  EXPECT_EQ(source->item(0).caption, "One, with a comma");
  EXPECT_TRUE(source->item(0).is_clip);
  LoadLimits limits;
  limits.short_side = 32;
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(pixels_of(*source, i).size(0), 5);
    EXPECT_EQ(source->num_pixels(i, limits), 5 * 32 * 32);
  }
  EXPECT_EQ(source->num_pixels(3, limits), 0);
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { source->load(3, limits); }), "00000003"));
}

TEST(CsvTable, ReadsAnyTableOfPlacesAndCaptions) {
  const MediaFolder folder;
  write_picture(folder / "pictures/a.png", 32, 32);
  write_bytes(folder / "table.csv", "path,prompt,id\npictures/a.png,a prompt,1\nnone.png,other,2\n,empty,3\n");
  const auto source = open(folder / "table.csv");
  EXPECT_EQ(source->item(0).caption, "a prompt");
  EXPECT_FALSE(source->item(0).is_clip);
  EXPECT_TRUE(pixels_of(*source, 0)[0].equal(smooth_picture(32, 32)));
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { pixels_of(*source, 1); }), "none.png"));
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { pixels_of(*source, 2); }), "00000002"));
  EXPECT_EQ(open(folder / "table.csv", "id")->item(1).caption, "2");
}

TEST(CsvTable, ReadsAFolderOfFilesInOrder) {
  const MediaFolder folder;
  write_picture(folder / "elsewhere/a.png", 32, 32);
  const std::string place = (folder / "elsewhere/a.png").string();
  write_bytes(folder / "tables/1.csv", "path,text\nx.png,second\n" + place + ",third\n");
  write_bytes(folder / "tables/0.csv", "path,text\n" + place + ",first\n");
  write_bytes(folder / "tables/2.csv", "path,text\n");
  const auto source = open(folder / "tables");
  ASSERT_EQ(source->size(), 3U);
  EXPECT_EQ(source->name(2), "1.csv:00000001");
  EXPECT_EQ(source->item(0).caption, "first");
  EXPECT_EQ(source->item(1).caption, "second");
  EXPECT_TRUE(pixels_of(*source, 2)[0].equal(smooth_picture(32, 32)));
  write_bytes(folder / "tables/2.csv", "path,caption\n");
  const std::string message = error_of(ExitCode::kData, [&] { open(folder / "tables"); });
  EXPECT_TRUE(contains(message, "2.csv: got columns path, caption")) << message;
}

TEST(CsvTable, NamesWhatIsWrong) {
  const MediaFolder folder;
  const auto message_of = [&](std::string_view text, const std::string& caption = "") {
    write_bytes(folder / "table.csv", text);
    return error_of(ExitCode::kData, [&] { open(folder / "table.csv", caption); });
  };
  EXPECT_TRUE(contains(message_of("a.png,some words\nb.png,others\n"), "columns: a.png, some words"));  // no header
  EXPECT_TRUE(contains(message_of("path,text\n"), "no row"));
  EXPECT_TRUE(contains(message_of("path,one,two\na.png,x,y\n"), "--caption-column"));
  EXPECT_TRUE(contains(message_of("path,text\na.png,x\n", "three"), "no column three, want one of: path, text"));
  const Variable offline("HF_HUB_OFFLINE", "1");
  const std::string urls = "url,text\nhttp://host.invalid/a.png,x\nhttps://host.invalid/b.png,y\n";
  EXPECT_TRUE(contains(message_of(urls), "only URLs in column url"));
  write_bytes(folder / "table.csv", urls + "c.png,z\n");
  const auto source = open(folder / "table.csv");  // not all of them
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { pixels_of(*source, 0); }), "table.csv:00000000"));
}

TEST(TableColumns, AreFoundByNameAndKind) {
  using Column = Table::Column;
  using Kind = Column::Kind;
  const auto chosen = [](const std::vector<Column>& columns, const std::string& image = "",
                         const std::string& caption = "") {
    const TableColumns found = choose_columns("t", columns, image, caption);
    return found.image + "|" + found.fallback + "|" + found.caption;
  };
  // The data set of DFM's tutorial.
  const std::vector<Column> butterflies{{"image_url", Kind::kText},  {"image_alt", Kind::kText},
                                        {"id", Kind::kText},         {"name", Kind::kText},
                                        {"gender", Kind::kText},     {"image", Kind::kPicture},
                                        {"image_hash", Kind::kText}, {"sim_score", Kind::kNumber}};
  EXPECT_EQ(chosen(butterflies), "image|image_url|name");
  EXPECT_EQ(chosen(butterflies, "image_url", "gender"), "image_url||gender");
  EXPECT_EQ(chosen(butterflies, "", "sim_score"), "image|image_url|sim_score");
  EXPECT_EQ(chosen({{"picture", Kind::kPicture}, {"Text", Kind::kText}, {"title", Kind::kText}}), "picture||Text");
  EXPECT_EQ(
      chosen(
          {{"mask", Kind::kPicture}, {"image", Kind::kPicture}, {"short_caption", Kind::kText}, {"id", Kind::kText}}),
      "image||short_caption");
  EXPECT_EQ(chosen({{"url", Kind::kText}, {"words", Kind::kText}}), "url||words");
  const auto message_of = [&](const std::vector<Column>& columns, const std::string& image = "",
                              const std::string& caption = "") {
    return error_of(ExitCode::kData, [&] { chosen(columns, image, caption); });
  };
  EXPECT_TRUE(contains(message_of({{"image", Kind::kPicture}, {"label", Kind::kNumber}}), "columns: image, label"));
  EXPECT_TRUE(contains(message_of({{"image", Kind::kPicture}, {"text", Kind::kText}, {"caption", Kind::kText}}),
                       "(text, caption)"));
  EXPECT_TRUE(
      contains(message_of({{"a", Kind::kPicture}, {"b", Kind::kPicture}, {"text", Kind::kText}}), "--image-column"));
  EXPECT_TRUE(contains(message_of({{"text", Kind::kText}, {"n", Kind::kNumber}}), "columns: text, n"));
  EXPECT_TRUE(contains(message_of(butterflies, "photo"), "no column photo"));
  EXPECT_TRUE(contains(message_of(butterflies, "sim_score"), "holds no picture"));
  EXPECT_TRUE(contains(message_of(butterflies, "", "image"), "holds no text"));
}

TEST(RawWebdataset, ReadsPicturesAndClipsFromTars) {
  const MediaFolder folder;
  write_picture(folder / "p.png", 32, 48);
  write_clip(folder / "c.mp4");
  std::filesystem::create_directories(folder / "tars");
  {
    formats::TarWriter writer(folder / "tars/00000.tar");
    writer.add("000.png", as_bytes(read_text_file(folder / "p.png")));
    writer.add("000.txt", as_bytes("a caption \n"));
    writer.add("001.json", as_bytes(R"({"caption": "in json", "width": 3})"));
    writer.add("001.PNG", as_bytes(read_text_file(folder / "p.png")));
    writer.add("002.json", as_bytes("{}"));  // no picture: passed over
    writer.add("003.png", as_bytes("no picture"));
    writer.add("003.json", as_bytes("no json"));
    writer.close();
  }
  {
    formats::TarWriter writer(folder / "tars/00001.tar");
    writer.add("sub/000.mp4", as_bytes(read_text_file(folder / "c.mp4")));
    writer.add("sub/000.txt", as_bytes("\xFF"));
    writer.close();
  }
  const auto source = open(folder / "tars");
  ASSERT_EQ(source->size(), 4U);
  EXPECT_TRUE(contains(source->description(), "2 tars, 3 pictures, 1 clips")) << source->description();
  EXPECT_EQ(source->name(0), "00000.tar:000");
  EXPECT_EQ(source->item(0).caption, "a caption");
  EXPECT_EQ(source->item(1).caption, "in json");
  EXPECT_TRUE(source->load(1, {.short_side = 32}).rgb_THW3[0].equal(smooth_picture(32, 48)));
  LoadLimits limits;
  limits.short_side = 32;
  EXPECT_EQ(source->num_pixels(0, limits), 32 * 48);
  EXPECT_EQ(source->num_pixels(2, limits), 0);
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { source->load(2, limits); }), "00000.tar:003"));
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { source->item(2); }), "003.json"));
  EXPECT_EQ(source->name(3), "00001.tar:sub/000");
  EXPECT_EQ(source->num_pixels(3, limits), 5 * 32 * 32);
  EXPECT_EQ(source->load(3, limits).rgb_THW3.size(0), 5);
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { source->item(3); }), "sub/000.txt"));

  const auto one = open(folder / "tars/00000.tar", "caption", "png");
  EXPECT_EQ(one->name(1), "00000.tar:001");
  EXPECT_EQ(one->item(1).caption, "in json");
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { open(folder / "tars", "", "webm"); }), "json, mp4, png, txt"));
}

TEST(RawWebdataset, NamesTheCaptionPartThatNoSampleHas) {
  const MediaFolder folder;
  write_picture(folder / "p.png", 32, 32);
  {
    formats::TarWriter writer(folder / "x.tar");
    writer.add("000.png", as_bytes(read_text_file(folder / "p.png")));
    writer.add("000.txt", as_bytes("a caption"));
    writer.close();
  }
  EXPECT_EQ(open(folder / "x.tar", "TXT")->item(0).caption, "a caption");
  const std::string message = error_of(ExitCode::kData, [&] { open(folder / "x.tar", "tx"); });
  EXPECT_TRUE(contains(message, ".tx or .json") && contains(message, "parts: png, txt")) << message;
}

TEST(RawWebdataset, RefusesLatents) {
  const MediaFolder folder;
  {
    formats::TarWriter writer(folder / "rank0-000000.tar");
    for (const char* part : {"json", "pickle", "pth"}) writer.add(std::string("000000.") + part, as_bytes("x"));
    writer.close();
  }
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { open(folder.path()); }), "dfm train --dataset-path"));
  write_bytes(folder / "rank0-000000.tar", "no tar at all");
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { open(folder.path()); }), "rank0-000000.tar"));
  std::filesystem::rename(folder / "rank0-000000.tar", folder / "x.tar.gz");
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { open(folder.path()); }), "compressed"));
}

TEST(HubFiles, AreThoseOfTheTrainSplit) {
  const auto parquet = [](const Names& names) { return select_hub_files("org/set", names).parquet; };
  EXPECT_EQ(parquet({"README.md", "data/test-00000-of-00001.parquet", "data/train-00001-of-00002.parquet",
                     "data/train-00000-of-00002.parquet"}),
            (Names{"data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"}));
  EXPECT_EQ(parquet({"a.parquet", "b/validation.parquet", "trains.parquet"}), (Names{"a.parquet", "trains.parquet"}));
  EXPECT_EQ(parquet({"default/train/0000.parquet", "default/test/0000.parquet"}),
            (Names{"default/train/0000.parquet"}));
  EXPECT_EQ(select_hub_files("org/set", {"00000.tar", "x.png", "README.md"}).tars, (Names{"00000.tar"}));
  EXPECT_EQ(select_hub_files("org/set", {"data/train/partitions/0001.csv", "data/val/partitions/0000.csv"}).csv,
            (Names{"data/train/partitions/0001.csv"}));
  const FolderListing folder = select_hub_files(
      "org/set", {"metadata.jsonl", "train/a.png", "train/metadata.csv", "test/b.png", "test/metadata.csv"});
  EXPECT_EQ(folder.media, (Names{"train/a.png"}));
  EXPECT_EQ(folder.metadata, (Names{"metadata.jsonl", "train/metadata.csv"}));
  const Names pictures{"cat.png", "dev-board.png", "test_1.png", "toy-train.png"};  // named by what they show
  EXPECT_EQ(select_hub_files("org/set", pictures).media, pictures);
  const auto message_of = [](const Names& names) {
    return error_of(ExitCode::kData, [&] { select_hub_files("org/set", names); });
  };
  EXPECT_TRUE(contains(message_of({"README.md", "data.zip"}), "files: README.md, data.zip"));
  EXPECT_TRUE(
      contains(message_of({"data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet"}), "got 2 of 3"));
}

// A data set in a cache, as clients in Python leave it.
class CachedSet {
 public:
  CachedSet() {
    write_bytes(repository() / "refs/main", kCommit);
    std::filesystem::create_directories(repository() / "blobs");
    options_.input = "org/pictures";
    options_.hub_cache = folder_.path();
  }
  [[nodiscard]] std::filesystem::path repository() const { return folder_ / "datasets--org--pictures"; }
  [[nodiscard]] std::filesystem::path snapshot() const { return repository() / "snapshots" / kCommit; }
  [[nodiscard]] std::filesystem::path state() const { return repository() / ".dfm" / kCommit; }
  [[nodiscard]] std::filesystem::path operator/(const std::string& name) const { return folder_ / name; }
  [[nodiscard]] const SourceOptions& options() const { return options_; }

 private:
  static constexpr const char* kCommit = "0123456789abcdef0123456789abcdef01234567";
  MediaFolder folder_;
  SourceOptions options_;
  Variable offline_{"HF_HUB_OFFLINE", "1"};
};

TEST(HubSource, ReadsTheCacheOffline) {
  const CachedSet set;
  write_picture(set.repository() / "blobs/1", 32, 32);
  write_bytes(set.repository() / "blobs/2", R"({"file_name": "a.png", "text": "from the hub"})");
  std::filesystem::create_directories(set.snapshot() / "train");
  std::filesystem::create_symlink("../../../blobs/1", set.snapshot() / "train/a.png");
  std::filesystem::create_symlink("../../../blobs/2", set.snapshot() / "train/metadata.jsonl");
  SourceOptions options = set.options();
  fetch_source(options);
  const auto source = open_source(options);
  ASSERT_EQ(source->size(), 1U);
  EXPECT_EQ(source->item(0).caption, "from the hub");
  EXPECT_TRUE(pixels_of(*source, 0)[0].equal(smooth_picture(32, 32)));
  options.input = "org/missing";
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { fetch_source(options); }), "org/missing"));
}

TEST(HubSource, RefusesADownloadThatWasNotFinished) {
  const CachedSet set;
  write_picture(set.snapshot() / "a.png", 32, 32);
  fetch_source(set.options());
  EXPECT_FALSE(std::filesystem::exists(set.state()));  // nothing is known about it now, either
  write_bytes(set.repository() / "blobs/2.incomplete", "half");
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { fetch_source(set.options()); }), "not finished"));
  write_bytes(set.state(), "whole");  // what is left of another commit
  fetch_source(set.options());
  std::filesystem::remove(set.repository() / "blobs/2.incomplete");
  write_bytes(set.state(), "started");
  const std::string message = error_of(ExitCode::kData, [&] { fetch_source(set.options()); });
  EXPECT_TRUE(contains(message, "hub dataset org/pictures: got a download that was not finished")) << message;
}

TEST(HubSource, TakesNoFilesFromOutsideTheDataSet) {
  const CachedSet set;
  write_picture(set / "secret.png", 32, 32);
  const std::string outside = (set / "secret.png").string();
  write_bytes(set.snapshot() / "train.csv",
              "path,text\n" + outside + ",x\n../../../secret.png,y\na/../../../../secret.png,z\nnone.png,w\n");
  ASSERT_TRUE(std::filesystem::exists(set.snapshot() / "../../../secret.png"));
  const auto source = open_source(set.options());
  ASSERT_EQ(source->size(), 4U);
  for (std::size_t row = 0; row < 3; ++row) {
    const std::string message = error_of(ExitCode::kData, [&] { pixels_of(*source, row); });
    EXPECT_TRUE(contains(message, "train.csv:0000000" + std::to_string(row)) && contains(message, "inside")) << message;
  }
  EXPECT_TRUE(contains(error_of(ExitCode::kData, [&] { pixels_of(*source, 3); }), "got no file"));
  EXPECT_EQ(pixels_of(*open(set.snapshot() / "train.csv"), 0).size(1), 32);  // a file of one's own may name any place
}

}  // namespace
}  // namespace dfm::data
