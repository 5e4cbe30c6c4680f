#include "dfm/formats/hub.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <string>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "formats/http.h"
#include "formats/hub_cache.h"
#include "formats/hub_download.h"

namespace dfm::formats {
namespace {

namespace fs = std::filesystem;

const std::string kCommit = "0123456789abcdef0123456789abcdef01234567";

// Sets variables (nothing: unsets), and puts back what was there.
using Values = std::map<std::string, std::optional<std::string>>;

class Environment {
 public:
  explicit Environment(const Values& values) {
    for (const char* name : {"HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN",
                             "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
                             "XDG_CACHE_HOME", "HOME", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_DISABLE_IMPLICIT_TOKEN"})
      set(name, std::string(name) == "HOME" ? std::optional<std::string>("/nowhere") : std::nullopt);
    for (const auto& [name, value] : values) set(name, value);
  }
  ~Environment() {
    for (const auto& [name, value] : before_) apply(name, value);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  static void apply(const std::string& name, const std::optional<std::string>& value) {
    value ? ::setenv(name.c_str(), value->c_str(), 1) : ::unsetenv(name.c_str());
  }
  void set(const std::string& name, const std::optional<std::string>& value) {
    const char* before = std::getenv(name.c_str());
    before_.try_emplace(name, before == nullptr ? std::nullopt : std::optional<std::string>(before));
    apply(name, value);
  }
  std::map<std::string, std::optional<std::string>> before_;
};

class HubFolder : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "dfm-hub-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }
  void write(const fs::path& path, const std::string& text) const {
    fs::create_directories((folder_ / path).parent_path());
    std::ofstream(folder_ / path) << text;
  }
  fs::path folder_;
};

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing thrown";
}

TEST(HubId, HasTheFormThatTheHubAllows) {
  for (const char* id : {"gpt2", "google-t5/t5-11b", "nvidia/Cosmos-0.1-Tokenizer-CV4x8x8", "a_b/c.d"})
    EXPECT_TRUE(is_hub_id(id)) << id;
  for (const char* id :
       {"", "/", "a/", "/b", "a/b/c", "../b", "a--b", "a..b", "x.git", "-a/b", "a/b.", "./a", "a b", "a\nb"})
    EXPECT_FALSE(is_hub_id(id)) << id;
  EXPECT_TRUE(is_hub_id(std::string("a/").append(96, 'b')));
  EXPECT_FALSE(is_hub_id(std::string("a/").append(97, 'b')));
}

TEST(HubPath, StaysInside) {
  for (const char* path : {"a", "a/b.c", "..a", "a../b", ".gitattributes"}) EXPECT_TRUE(stays_inside(path)) << path;
  for (const char* path : {"", "/a", "a/", "a//b", "..", "../a", "a/../b", "a/..", ".", "a/./b", "a\nb"})
    EXPECT_FALSE(stays_inside(path)) << path;
  EXPECT_FALSE(stays_inside(std::string("a\0b", 3)));
}

TEST(HubEtag, LosesQuotesAndWeakness) {
  EXPECT_EQ(normalized_etag("\"abc\""), "abc");
  EXPECT_EQ(normalized_etag("W/\"abc\""), "abc");
  EXPECT_EQ(normalized_etag("abc"), "abc");
  for (const char* header : {"", "\"\"", "\"../x\"", "\"a/b\"", "..", "\"x.incomplete\""})
    EXPECT_EQ(normalized_etag(header), "") << header;
}

TEST(Http, OriginIsSchemeHostAndPort) {
  EXPECT_EQ(http_origin("https://HuggingFace.co/a?b"), "https://huggingface.co:443");
  EXPECT_EQ(http_origin("http://user:secret@a.b:81/"), "http://a.b:81");
  EXPECT_EQ(http_origin("http://a.b@c.d/"), "http://c.d:80");
  EXPECT_NE(http_origin("http://a.b/"), http_origin("https://a.b/"));
  for (const char* url : {"", "file:///etc/passwd", "ftp://a.b/", "a.b/c", "https://"})
    EXPECT_EQ(http_origin(url), "") << url;
}

TEST(Http, RedirectsAreResolved) {
  EXPECT_EQ(http_resolve("https://a.b/c/d?e", "/f?g=1"), "https://a.b/f?g=1");
  EXPECT_EQ(http_resolve("https://a.b/c/d", "https://x.y/z"), "https://x.y/z");
  EXPECT_EQ(http_resolve("https://a.b/c/d", "//x.y/z"), "https://x.y/z");
  EXPECT_EQ(http_origin(http_resolve("https://a.b/c", "file:///etc/passwd")), "");
}

TEST(Http, QuotesAllButPlainCharacters) {
  EXPECT_EQ(http_quote("refs/pr/1", ""), "refs%2Fpr%2F1");
  EXPECT_EQ(http_quote("a b/\xc3\xa9#?.bin", "/"), "a%20b/%C3%A9%23%3F.bin");
}

TEST(HubSettings, FolderComesFromTheFirstVariableThatIsSet) {
  {
    const Environment environment(Values{});
    EXPECT_EQ(HubSettings::from_environment().cache, "/nowhere/.cache/huggingface/hub");
    EXPECT_EQ(HubSettings::from_environment("/mine").cache, "/mine");
    EXPECT_EQ(HubSettings::from_environment().endpoint, "https://huggingface.co");
  }
  {
    const Environment environment(Values{{"XDG_CACHE_HOME", "/xdg"}});
    EXPECT_EQ(HubSettings::from_environment().cache, "/xdg/huggingface/hub");
  }
  {
    const Environment environment(Values{{"HF_HOME", "~/hf"}});
    EXPECT_EQ(HubSettings::from_environment().cache, "/nowhere/hf/hub");
  }
  const Environment environment(
      Values{{"HF_HOME", "/h"}, {"HUGGINGFACE_HUB_CACHE", "/old"}, {"HF_HUB_CACHE", "${HOME}/$X-c"}});
  EXPECT_EQ(HubSettings::from_environment().cache, "/nowhere/$X-c");
}

TEST(HubSettings, EndpointOfflineAndTimeouts) {
  const Environment environment(Values{
      {"HF_ENDPOINT", "http://127.0.0.1:8000/"}, {"TRANSFORMERS_OFFLINE", "yes"}, {"HF_HUB_DOWNLOAD_TIMEOUT", "2.5"}});
  const HubSettings settings = HubSettings::from_environment();
  EXPECT_EQ(settings.endpoint, "http://127.0.0.1:8000");
  EXPECT_TRUE(settings.offline);
  EXPECT_EQ(settings.timeout_seconds, 2.5);
  const Environment zero(Values{{"HF_HUB_OFFLINE", "0"}, {"TRANSFORMERS_OFFLINE", "1"}});
  EXPECT_FALSE(HubSettings::from_environment().offline);
  const Environment bad(Values{{"HF_ENDPOINT", "huggingface.co"}});
  EXPECT_EQ(message_of([] { HubSettings::from_environment(); }),
            "environment variable HF_ENDPOINT: got 'huggingface.co', want an address like https://huggingface.co");
}

TEST_F(HubFolder, TokenComesFromVariablesThenFromTheFile) {
  write("token", " hf_file\n");
  {
    const Environment environment(Values{{"HF_HOME", folder_.string()}});
    EXPECT_EQ(HubSettings::from_environment().token, "hf_file");
  }
  {
    const Environment environment(Values{{"HF_HOME", folder_.string()}, {"HUGGING_FACE_HUB_TOKEN", "hf_old\r\n"}});
    EXPECT_EQ(HubSettings::from_environment().token, "hf_old");
  }
  {
    const Environment environment(Values{{"HF_HOME", folder_.string()}, {"HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"}});
    EXPECT_EQ(HubSettings::from_environment().token, "");
  }
  const Environment environment(Values{{"HF_TOKEN", "hf_two words"}});
  EXPECT_EQ(message_of([] { HubSettings::from_environment(); }),
            "HF_TOKEN: got a token with blanks or characters beyond ASCII, want one like hf_...");
}

TEST(Sha, MatchesKnownValues) {
  Sha sha(256);
  sha.update(as_bytes("a"));
  sha.update(as_bytes("bc"));
  EXPECT_EQ(sha.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(git_blob_sha1({}), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");  // git's well-known empty blob
  EXPECT_EQ(git_blob_sha1(as_bytes("hello\n")), "ce013625030ba8dba906f756967f9e9ca394464a");
}

TEST_F(HubFolder, PartialFileContinuesWhereItWas) {
  const std::string etag = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  write("x.incomplete", "ab");
  PartialFile file(folder_ / "x.incomplete", etag);
  EXPECT_EQ(file.size(), 2U);
  file.write(as_bytes("c"));
  EXPECT_EQ(file.mismatch(), "");
  file.sync_and_rename(folder_ / "x");
  EXPECT_EQ(read_text_file(folder_ / "x"), "abc");
  EXPECT_FALSE(fs::exists(folder_ / "x.incomplete"));
}

TEST_F(HubFolder, OfflineFindsWhatTheCacheHas) {
  HubSettings settings;
  settings.cache = folder_;
  settings.offline = true;
  const Hub hub(settings);
  const HubRepo repo{.id = "org/name"};
  write("models--org--name/refs/main", kCommit);
  write("models--org--name/blobs/abc", "text");
  write("models--org--name/.no_exist/" + kCommit + "/absent.json", "");
  const fs::path snapshot = folder_ / "models--org--name/snapshots" / kCommit;
  fs::create_directories(snapshot / "sub");
  fs::create_symlink("../../../blobs/abc", snapshot / "sub/file.txt");
  fs::create_symlink("../../blobs/gone", snapshot / "broken.txt");
  EXPECT_EQ(hub.fetch(repo, "sub/file.txt"), snapshot / "sub/file.txt");
  EXPECT_EQ(hub.fetch_if_there(repo, "absent.json"), std::nullopt);
  EXPECT_EQ(hub.fetch_if_there(repo, "broken.txt"), std::nullopt);
  EXPECT_EQ(hub.list(repo), std::vector<std::string>{"sub/file.txt"});
  EXPECT_EQ(
      message_of([&] { (void)hub.fetch({.id = "org/other"}, "config.json"); }),
      "hub model org/other: config.json: got nothing in the cache in " + folder_.string() +
          " while HF_HUB_OFFLINE is set, want it there; hint: run once with a network and without HF_HUB_OFFLINE");
}

TEST_F(HubFolder, RefusesNamesThatLeave) {
  HubSettings settings;
  settings.cache = folder_;
  const Hub hub(settings);
  EXPECT_EQ(message_of([&] { (void)hub.fetch({.id = "org/name"}, "../../x"); }),
            "hub model org/name: ../../x: got a path that leaves the repository, want one inside");
  EXPECT_EQ(message_of([&] { (void)hub.fetch({.id = "../name"}, "x"); }),
            "hub model: got '../name', want a name like google-t5/t5-small");
  EXPECT_EQ(message_of([&] { (void)hub.list({.id = "org/name", .revision = "../.."}); }),
            "hub org/name: got revision '../..', want a branch, tag or commit");
}

TEST_F(HubFolder, RefThatWasCutCountsAsNone) {
  HubSettings settings;
  settings.cache = folder_;
  const HubRepo repo{.id = "org/name"};
  const HubCache cache(settings, repo);
  write("models--org--name/refs/main", kCommit.substr(0, 20));
  EXPECT_EQ(cache.commit_of("main"), std::nullopt);
  cache.remember_commit("main", kCommit);
  EXPECT_EQ(read_text_file(cache.folder() / "refs/main"), kCommit);
  EXPECT_EQ(cache.commit_of("main"), kCommit);
}

TEST_F(HubFolder, WithoutLinksTheSnapshotHoldsTheFile) {
  HubSettings settings;
  settings.cache = folder_;
  settings.use_symlinks = false;
  const HubCache cache(settings, {.id = "org/name"});
  write("models--org--name/blobs/abc", "text");
  cache.place("abc", kCommit, "a/copy.txt", false);
  EXPECT_TRUE(fs::exists(cache.blob("abc")));
  cache.place("abc", kCommit, "moved.txt", true);
  EXPECT_FALSE(fs::exists(cache.blob("abc")));
  for (const char* name : {"a/copy.txt", "moved.txt"}) {
    EXPECT_FALSE(fs::is_symlink(cache.pointer(kCommit, name)));
    EXPECT_EQ(read_text_file(cache.pointer(kCommit, name)), "text");
  }
}

}  // namespace
}  // namespace dfm::formats
