// T5's parts. Its numbers against transformers: tests/python/t5_matches_transformers.py.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>

#include "dfm/base/error.h"
#include "models/t5/attention_groups.h"
#include "models/t5/position_bias.h"
#include "models/t5/t5_network.h"
#include "support/tolerance.h"

namespace dfm::models {
namespace {

using test::relative_error;
using Ids = std::vector<std::int32_t>;

TEST(T5Config, ReadsEveryNumber) {
  const T5Config config = parse_t5_config(
      R"({"model_type": "t5", "vocab_size": 32128, "d_model": 1024, "d_kv": 128, "d_ff": 65536, "num_layers": 24,
          "num_heads": 128, "relative_attention_num_buckets": 16, "layer_norm_epsilon": 1e-05, "n_positions": 512})",
      "config.json");
  EXPECT_EQ(config.d_model, 1024);
  EXPECT_EQ(config.inner(), 16384);
  EXPECT_EQ(config.d_ff, 65536);
  EXPECT_EQ(config.num_layers, 24);
  EXPECT_EQ(config.num_buckets, 16);
  EXPECT_EQ(config.max_distance, 128);
  EXPECT_EQ(config.epsilon, 1e-5);
  EXPECT_FALSE(config.gated);
  EXPECT_EQ(config.activation, T5Activation::kRelu);
}

TEST(T5Config, KnowsTheFeedForwardKinds) {
  const auto parse = [](const std::string& kind) {
    return parse_t5_config(R"({"feed_forward_proj": ")" + kind + "\"}", "c");
  };
  EXPECT_TRUE(parse("gated-gelu").gated);
  EXPECT_EQ(parse("gated-gelu").activation, T5Activation::kGeluTanh);  // not the exact one: transformers' own exception
  EXPECT_EQ(parse("gated-silu").activation, T5Activation::kSilu);
  EXPECT_EQ(parse("gelu").activation, T5Activation::kGelu);
  EXPECT_FALSE(parse("gelu").gated);
  EXPECT_EQ(parse_t5_config(R"({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"})", "c").activation,
            T5Activation::kGelu);
}

TEST(T5Config, RefusesWhatIsNoT5) {
  EXPECT_THROW(parse_t5_config(R"({"model_type": "bert"})", "c"), ConfigError);
  for (const char* text : {"", "[]", R"({"d_model": 0})", R"({"d_model": -1})", R"({"d_model": 1e300})",
                           R"({"d_model": "512"})", R"({"num_layers": 99999999999})", R"({"layer_norm_epsilon": -1})",
                           R"({"feed_forward_proj": "gated-mish"})", R"({"feed_forward_proj": 3})",
                           R"({"relative_attention_num_buckets": 3})", R"({"relative_attention_max_distance": 8})"}) {
    EXPECT_THROW(parse_t5_config(text, "c"), DataError) << text;
  }
}

TEST(PositionBuckets, HaveThePublishedEdges) {
  const auto buckets = position_buckets(32, 128, 512);
  ASSERT_EQ(buckets.size(), 1023U);
  const auto bucket = [&](std::int64_t offset) { return buckets[static_cast<std::size_t>(offset + 511)]; };
  EXPECT_EQ(bucket(0), 0);
  for (std::int64_t n = 1; n < 8; ++n) {
    EXPECT_EQ(bucket(-n), n);
    EXPECT_EQ(bucket(n), 16 + n);
  }
  // The first distance of each further bucket.
  const std::vector<std::pair<std::int64_t, std::int64_t>> edges = {{8, 8},   {12, 9},  {16, 10}, {23, 11},
                                                                    {32, 12}, {46, 13}, {64, 14}, {91, 15}};
  for (const auto& [distance, expected] : edges) {
    EXPECT_EQ(bucket(-distance), expected);
    EXPECT_EQ(bucket(distance), 16 + expected);
    EXPECT_EQ(bucket(-(distance - 1)), expected - 1);
  }
  EXPECT_EQ(bucket(511), 31);
}

TEST(PositionBias, IsTheBucketOfKeyMinusQuery) {
  const at::Tensor table_BH = at::randn({32, 3});
  const auto buckets = position_buckets(32, 128, 512);
  const at::Tensor distances_HO = bias_of_distances(table_BH, buckets);
  for (const std::int64_t length : {1, 2, 16, 21, 512}) {
    const at::Tensor bias_HLL = bias_of_length(distances_HO, length);
    ASSERT_EQ(bias_HLL.sizes(), (std::vector<std::int64_t>{3, length, length}));
    EXPECT_EQ(bias_HLL.stride(1) % 16, 0);
    EXPECT_EQ(bias_HLL.stride(2), 1);
    const at::Tensor place = at::arange(length).unsqueeze(0) - at::arange(length).unsqueeze(1) + 511;
    const at::Tensor index = at::tensor(buckets, at::kLong).index_select(0, place.flatten());
    const at::Tensor want = table_BH.index_select(0, index).t().view({3, length, length});
    EXPECT_TRUE(at::equal(bias_HLL, want)) << length;
  }
}

TEST(AttentionGroups, CoverAllCaptionsInOrder) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < 200; ++i) lengths.push_back(1 + i * i / 90);
  for (const double call : {0.0, 1e4, 1e6, 1e9}) {
    std::int64_t next = 0;
    for (const AttentionGroup& group :
         group_captions(lengths, {.call_bytes = call, .row_bytes = 256, .heads = 2, .element_bytes = 4})) {
      EXPECT_EQ(group.first, next);
      next += group.count;
      EXPECT_EQ(group.length, lengths[static_cast<std::size_t>(next - 1)]);
      EXPECT_EQ(group.equal, lengths[static_cast<std::size_t>(group.first)] == group.length);
    }
    EXPECT_EQ(next, 200);
  }
  EXPECT_TRUE(group_captions({}, {}).empty());
}

TEST(AttentionGroups, PadOnlyWhereCallsCostMore) {
  const std::vector<std::int64_t> lengths = {3, 3, 4, 5, 40};
  const GroupCosts costs{.call_bytes = 0, .row_bytes = 256, .heads = 2, .element_bytes = 4};
  EXPECT_EQ(group_captions(lengths, costs).size(), 4U);  // one a length
  GroupCosts dear = costs;
  dear.call_bytes = 1e9;
  EXPECT_EQ(group_captions(lengths, dear).size(), 1U);
  dear.largest_mask = 1000;  // 5 captions of 40 x 40 do not fit
  EXPECT_GT(group_captions(lengths, dear).size(), 1U);
  dear.call_bytes = 2e4;
  dear.largest_mask = 1 << 20;
  const auto groups = group_captions(lengths, dear);  // the short ones together, the long one alone
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0].count, 4);
}

T5Config small_config(bool gated) {
  T5Config config{.vocab_size = 100, .d_model = 24, .d_kv = 16, .d_ff = 40, .num_layers = 3, .num_heads = 5};
  config.gated = gated;
  if (gated) config.activation = T5Activation::kGeluTanh;
  return config;
}

// Tensors that are the same each time they are asked for.
ReadT5Tensor fixed_tensors(const T5Config& config, at::ScalarType dtype = at::kFloat) {
  at::manual_seed(3);
  const auto random = random_t5_tensors(config, at::kCPU, at::kFloat);
  auto tensors = std::make_shared<std::map<std::string, at::Tensor>>();
  for (const T5Parameter& parameter : t5_parameters(config)) (*tensors)[parameter.name] = random(parameter.name);
  return [tensors, dtype](const std::string& name) { return tensors->at(name).to(dtype); };
}

Ids ids_of(std::int64_t length, std::int32_t salt) {
  Ids ids;
  for (std::int64_t i = 0; i < length; ++i) ids.push_back(static_cast<std::int32_t>((i * 37 + salt * 11) % 99 + 1));
  return ids;
}

TEST(T5Network, DoesNotDependOnTheBatch) {
  for (const bool gated : {false, true}) {
    const T5Config config = small_config(gated);
    const T5Network network(load_t5_weights(config, fixed_tensors(config), at::kCPU, at::kFloat, false));
    std::vector<Ids> captions;
    for (const std::int64_t length : {5, 1, 7, 512, 5, 6, 6, 33, 2, 5, 130}) {
      captions.push_back(ids_of(length, static_cast<std::int32_t>(captions.size())));
    }
    const auto together = network.encode(captions);
    ASSERT_EQ(together.size(), captions.size());
    for (std::size_t i = 0; i < captions.size(); ++i) {
      EXPECT_EQ(together[i].sizes(), (std::vector<std::int64_t>{static_cast<std::int64_t>(captions[i].size()), 24}));
      EXPECT_EQ(together[i].scalar_type(), at::kFloat);
      EXPECT_LT(relative_error(network.encode({captions[i]}).front(), together[i]), 1e-5);
    }
  }
}

TEST(T5Network, ConvertsWeightsAndMergesThem) {
  const T5Config config = small_config(false);
  const std::vector<Ids> captions = {ids_of(9, 1), ids_of(4, 2)};
  const auto encode = [&](const T5Weights& weights) { return T5Network(weights).encode(captions); };
  const T5Weights plain = load_t5_weights(config, fixed_tensors(config), at::kCPU, at::kFloat, false);
  EXPECT_EQ(plain.layers[0].qkv.size(), 3U);  // the file's own memory
  const T5Weights widened = load_t5_weights(config, fixed_tensors(config, at::kDouble), at::kCPU, at::kFloat, false);
  EXPECT_EQ(widened.layers[0].qkv.size(), 1U);
  const T5Weights half = load_t5_weights(config, fixed_tensors(config), at::kCPU, at::kBFloat16, false);
  EXPECT_EQ(half.layers[0].wo.scalar_type(), at::kBFloat16);
  const auto want = encode(plain), same = encode(widened), near = encode(half);
  for (std::size_t i = 0; i < captions.size(); ++i) {
    EXPECT_LT(relative_error(same[i], want[i]), 1e-6);
    EXPECT_LT(relative_error(near[i], want[i]), 3e-2);
    EXPECT_GT(relative_error(near[i], want[i]), 1e-5);
  }
}

TEST(T5Network, GivesNothingForNothingAndRefusesForeignIds) {
  const T5Config config = small_config(false);
  const T5Network network(load_t5_weights(config, fixed_tensors(config), at::kCPU, at::kFloat, false));
  EXPECT_TRUE(network.encode({}).empty());
  EXPECT_THROW(static_cast<void>(network.encode({{100}})), InternalError);
  EXPECT_THROW(static_cast<void>(network.encode({{-1}})), InternalError);
  EXPECT_THROW(static_cast<void>(network.encode({Ids{}})), InternalError);
  EXPECT_THROW(static_cast<void>(network.encode({Ids(513, 1)})), InternalError);
}

}  // namespace
}  // namespace dfm::models
