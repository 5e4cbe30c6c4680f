#include "dfm/ops/attention.h"

#include "ops/numeric_jacobian.h"
#include "ops/references.h"
#include "support/errors.h"
#include "support/tolerance.h"

namespace dfm::ops {
namespace {

using test::Inputs;
using test::random_tensor;

struct Shape {
  std::vector<std::int64_t> queries, keys;
  std::int64_t total_keys;  // -1: none added
};
const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all{
      {{7, 7, 7, 3, 3, 1}, {7, 7, 7, 3, 3, 1}, -1},  // self-attention with runs of equal lengths
      {{40, 36, 36, 5}, {3, 3, 3, 0}, 512},          // text, one dropped
      {{5, 0, 4}, {2, 6, 8}, 8},                     // no queries; a text that fills all rows
      {{4, 3}, {0, 0}, 512},                         // nobody has text
  };
  return all;
}
constexpr std::int64_t kHeads = 2, kSize = 8, kPadding = 3;

Inputs inputs(const Shape& shape) {
  const std::int64_t rows = Segments::from_lengths(shape.queries).num_tokens() + kPadding;
  const std::int64_t keys = Segments::from_lengths(shape.keys).num_tokens();
  const at::Tensor kv = random_tensor({keys, kHeads, 2, kSize}, at::kDouble, 2);  // strided, as in the model
  return {random_tensor({rows, kHeads, kSize}), kv.select(2, 0) * 2, kv.select(2, 1)};
}

test::Operation operation(const Shape& shape) {
  return [shape](const Inputs& x) {
    const std::optional<std::int64_t> total = shape.total_keys < 0 ? std::nullopt : std::optional(shape.total_keys);
    return packed_attention(x[0], x[1], x[2], Segments::from_lengths(shape.queries), Segments::from_lengths(shape.keys),
                            total);
  };
}
test::Operation reference(const Shape& shape) {
  return [shape](const Inputs& x) {
    return test::attention_reference(x[0], x[1], x[2], Segments::from_lengths(shape.queries),
                                     Segments::from_lengths(shape.keys), shape.total_keys);
  };
}

TEST(PackedAttention, EqualsSoftmaxAttentionWithItsZeroRowsWrittenOut) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (const Shape& shape : shapes()) {
      SCOPED_TRACE(std::string(c10::toString(dtype)) + " " + std::to_string(shape.queries[0]));
      Inputs rounded, exact;
      for (const at::Tensor& input : inputs(shape)) {
        rounded.push_back(input.to(dtype));
        exact.push_back(rounded.back().to(at::kDouble));
      }
      const double tolerance = dtype == at::kBFloat16 ? 2e-2 : test::tolerance(dtype).forward;
      const at::Tensor got = operation(shape)(rounded);
      EXPECT_LT(test::relative_error(got, reference(shape)(exact)), tolerance);
      const at::Tensor cotangent = random_tensor(got.sizes(), at::kDouble, 9);
      const Inputs found = test::gradients(operation(shape), rounded, cotangent.to(dtype));
      const Inputs wanted = test::gradients(reference(shape), exact, cotangent);
      for (std::size_t i = 0; i < found.size(); ++i) {
        EXPECT_LT(test::relative_error(found[i], wanted[i]), tolerance) << "gradient " << i;
      }
    }
  }
}

TEST(PackedAttention, GradientsAreThoseOfItsValues) {
  const Shape shape{{3, 3, 2}, {2, 2, 0}, 16};
  Inputs x = inputs(shape);
  test::expect_gradients_match(operation(shape), x, 1e-6);
}

TEST(PackedAttention, WithoutKeysIsExactlyZero) {
  const Shape shape{{4, 3}, {0, 2}, 512};
  const at::Tensor out = operation(shape)(inputs(shape));
  EXPECT_EQ(out.narrow(0, 0, 4).abs().max().item<double>(), 0);
  EXPECT_GT(out.narrow(0, 4, 3).abs().max().item<double>(), 0);
}

TEST(PackedAttention, RefusesQueriesWithoutKeysAndTooManyKeys) {
  const Shape none{{4}, {0}, -1};
  EXPECT_DFM_ERROR(ExitCode::kInternal, "got no key", operation(none)(inputs(none)));
  const Shape many{{4}, {9}, 8};
  EXPECT_DFM_ERROR(ExitCode::kInternal, "got 9 keys, want at most 8", operation(many)(inputs(many)));
}

}  // namespace
}  // namespace dfm::ops
