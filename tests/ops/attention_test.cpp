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
      {{5, 0, 5}, {2, 6, 2}, 8},                     // equal neighbours in the queries that are none in the keys
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

// Keys cut in two at any place, as context ranks hold them: what both parts give is the whole.
TEST(PackedAttentionParts, MergeToTheWhole) {
  const std::vector<std::int64_t> queries{6, 4, 0, 5, 1}, keys{7, 3, 4, 5, 1}, left{7, 1, 2, 0, 0},
      right{0, 2, 2, 5, 1};
  const Segments q_segments = Segments::from_lengths(queries), k_segments = Segments::from_lengths(keys);
  const std::int64_t rows = q_segments.num_tokens() + kPadding;
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    const double tolerance = dtype == at::kBFloat16 ? 2e-2 : test::tolerance(dtype).forward;
    const at::Tensor q = random_tensor({rows, kHeads, kSize}).to(dtype);
    const at::Tensor kv = random_tensor({20, kHeads, 2, kSize}, at::kDouble, 2).to(dtype);
    const auto part = [&](const std::vector<std::int64_t>& lengths, int dim) {
      std::vector<at::Tensor> rows_of_part;
      for (std::size_t i = 0; i < lengths.size(); ++i) {
        const std::int64_t first = k_segments.offsets[i] + (lengths == right ? left[i] : 0);
        rows_of_part.push_back(kv.select(2, dim).narrow(0, first, lengths[i]));
      }
      return at::cat(rows_of_part);
    };
    const AttentionPart whole = packed_attention_forward(q, kv.select(2, 0), kv.select(2, 1), q_segments, k_segments);
    const at::Tensor grad = random_tensor({rows, kHeads, kSize}, at::kDouble, 3).to(dtype);
    const AttentionGradients want = packed_attention_backward(grad, q, kv.select(2, 0), kv.select(2, 1), whole.out_THd,
                                                              whole.lse_HT, q_segments, k_segments);
    at::Tensor lse, out = at::zeros({rows, kHeads, kSize}), grad_q = at::zeros_like(out);
    for (const auto& lengths : {left, right}) {
      const Segments segments = Segments::from_lengths(lengths);
      const AttentionPart got = packed_attention_forward(q, part(lengths, 0), part(lengths, 1), q_segments, segments);
      EXPECT_EQ(got.lse_HT.scalar_type(), dtype == at::kDouble ? at::kDouble : at::kFloat);
      lse = lse.defined() ? at::logaddexp(lse, got.lse_HT) : got.lse_HT;
      const at::Tensor share = (got.lse_HT - whole.lse_HT).exp().t().unsqueeze(-1).nan_to_num();  // padding: inf - inf
      out = out + got.out_THd * share;
      const AttentionGradients found = packed_attention_backward(grad, q, part(lengths, 0), part(lengths, 1),
                                                                 whole.out_THd, whole.lse_HT, q_segments, segments);
      grad_q = grad_q + found.q_THd;
      for (std::size_t i = 0; i < lengths.size(); ++i) {
        const std::int64_t first = k_segments.offsets[i] + (lengths == right ? left[i] : 0);
        const auto rows_of = [&](const at::Tensor& x, std::int64_t begin) { return x.narrow(0, begin, lengths[i]); };
        EXPECT_LT(test::relative_error(rows_of(found.k_LHd, segments.offsets[i]), rows_of(want.k_LHd, first)),
                  tolerance);
        EXPECT_LT(test::relative_error(rows_of(found.v_LHd, segments.offsets[i]), rows_of(want.v_LHd, first)),
                  tolerance);
      }
      // Queries without keys, and padding.
      for (std::int64_t row = 0; row < rows; ++row) {
        const bool has_keys = [&] {
          for (std::size_t i = 0; i < lengths.size(); ++i) {
            if (row >= q_segments.offsets[i] && row < q_segments.offsets[i + 1]) return lengths[i] > 0;
          }
          return false;
        }();
        if (has_keys) continue;
        EXPECT_EQ(got.out_THd[row].abs().max().item<double>(), 0) << row;
        EXPECT_TRUE(got.lse_HT.select(1, row).isneginf().all().item<bool>()) << row;
        EXPECT_EQ(found.q_THd[row].abs().max().item<double>(), 0) << row;
      }
    }
    EXPECT_LT(test::relative_error(out, whole.out_THd), tolerance);
    EXPECT_LT(test::relative_error(grad_q, want.q_THd), tolerance);
    EXPECT_LT(test::relative_error(lse.narrow(1, 0, rows - kPadding), whole.lse_HT.narrow(1, 0, rows - kPadding)),
              tolerance);
  }
}

}  // namespace
}  // namespace dfm::ops
