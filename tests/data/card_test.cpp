#include "dfm/data/card.h"

#include <gtest/gtest.h>

#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::data {
namespace {

// A card whose fps is this text.
std::string with_fps(const std::string& fps) {
  DatasetCard card;
  card.fps = 12.5;
  const std::string json = to_json(card);
  const std::size_t place = json.find("12.5");
  return json.substr(0, place) + fps + json.substr(place + 4);
}

TEST(DatasetCard, SurvivesJson) {
  DatasetCard card;
  card.tokenizer = "a \"name\"";
  card.num_samples = 7, card.num_clips = 3, card.fps = 23.976, card.text_width = 64;
  card.settings = {{"short_side", "512"}, {"fps", "24"}};
  const DatasetCard back = card_from_json(to_json(card), "here");
  EXPECT_EQ(to_json(back), to_json(card));
  EXPECT_EQ(back.settings, card.settings);
  EXPECT_EQ(back.fps, card.fps);
}

TEST(DatasetCard, RefusesWhatIsNone) {
  EXPECT_DFM_ERROR(ExitCode::kData, "here: got text that is no JSON", card_from_json("{", "here"));
  EXPECT_DFM_ERROR(ExitCode::kData, "format_version nothing", card_from_json("{}", "here"));
  EXPECT_DFM_ERROR(ExitCode::kData, "no \"tokenizer\"", card_from_json("{\"format_version\": 1}", "here"));
  EXPECT_DFM_ERROR(ExitCode::kData, "for \"fps\"", card_from_json(with_fps("[1]"), "here"));
  DatasetCard card;
  card.latent_channels = -1;
  EXPECT_DFM_ERROR(ExitCode::kData, "sizes below 1", card_from_json(to_json(card), "here"));
}

TEST(DatasetCard, IsAbsentInOtherFolders) {
  const test::TempFolder folder;
  EXPECT_FALSE(load_card(folder.path()));
}

}  // namespace
}  // namespace dfm::data
