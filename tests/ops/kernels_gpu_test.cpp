// The CUDA kernels against ATen's operations on the same GPU and against the CPU.
#include "dfm/ops/adamw.h"
#include "dfm/ops/attention.h"
#include "dfm/ops/device.h"
#include "dfm/ops/head_norm.h"
#include "dfm/ops/modulate.h"
#include "dfm/ops/philox_normal.h"
#include "ops/numeric_jacobian.h"
#include "ops/references.h"
#include "support/tolerance.h"

namespace dfm::ops {
namespace {

using test::Inputs;
using test::random_tensor;

class CudaKernelsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { device_ = select_device("auto", 0); }
  void SetUp() override {
    if (!device_.is_cuda()) GTEST_SKIP() << "skipped: no GPU";
    ASSERT_TRUE(has_cuda_kernels());
  }
  // Values and gradients of `op` on the GPU in `dtype` against `reference` in double on the CPU.
  static void expect_same(const test::Operation& op, const test::Operation& reference, const Inputs& inputs,
                          at::ScalarType dtype, double tolerance) {
    Inputs on_gpu, exact;
    for (const at::Tensor& input : inputs) {
      on_gpu.push_back(input.to(dtype).to(device_));
      exact.push_back(input.to(dtype).to(at::kDouble));
    }
    const at::Tensor got = op(on_gpu);
    EXPECT_LT(test::relative_error(got, reference(exact)), tolerance) << c10::toString(dtype);
    const at::Tensor cotangent = random_tensor(got.sizes(), at::kDouble, 9);
    const Inputs found = test::gradients(op, on_gpu, cotangent.to(dtype).to(device_));
    const Inputs wanted = test::gradients(reference, exact, cotangent.to(dtype).to(at::kDouble));
    for (std::size_t i = 0; i < found.size(); ++i) {
      EXPECT_LT(test::relative_error(found[i], wanted[i]), tolerance) << c10::toString(dtype) << " gradient " << i;
    }
  }
  static inline at::Device device_ = at::kCPU;
};

constexpr double kFloatTolerance = 1e-5, kBfloat16Tolerance = 1.5e-2;

TEST_F(CudaKernelsTest, NormModulateAndGateResidualEqualTheirReferences) {
  for (const std::int64_t width : {96, 1152, 1000}) {
    const std::vector<std::int64_t> lengths{700, 0, 33, 1};
    const Segments host = Segments::from_lengths(lengths), segments = Segments::from_lengths(lengths, device_);
    const Inputs inputs{random_tensor({740, width}, at::kDouble, 1) * 2 + 1, random_tensor({4, width}, at::kDouble, 2),
                        random_tensor({4, width}, at::kDouble, 3)};
    const Inputs gated{inputs[0], inputs[1], random_tensor({740, width}, at::kDouble, 4)};
    for (const auto& [dtype, tolerance] :
         {std::pair(at::kFloat, kFloatTolerance), std::pair(at::kBFloat16, kBfloat16Tolerance)}) {
      expect_same([&](const Inputs& x) { return norm_modulate(x[0], x[1], x[2], segments, 1e-5); },
                  [&](const Inputs& x) { return test::norm_modulate_reference(x[0], x[1], x[2], host, 1e-5); }, inputs,
                  dtype, tolerance);
      expect_same([&](const Inputs& x) { return gate_residual(x[0], x[1], x[2], segments); },
                  [&](const Inputs& x) { return test::gate_residual_reference(x[0], x[1], x[2], host); }, gated, dtype,
                  tolerance);
    }
  }
}

TEST_F(CudaKernelsTest, PackedAttentionEqualsItsReference) {
  for (const std::int64_t size : {24, 72}) {
    for (const bool has_text : {false, true}) {
      const std::vector<std::int64_t> queries{70, 33, 33, 1};
      const std::vector<std::int64_t> keys = has_text ? std::vector<std::int64_t>{7, 0, 512, 1} : queries;
      const std::int64_t total = has_text ? 512 : -1, rows = 140;
      const Segments q_host = Segments::from_lengths(queries), k_host = Segments::from_lengths(keys);
      const Segments q = Segments::from_lengths(queries, device_), k = Segments::from_lengths(keys, device_);
      const Inputs inputs{random_tensor({rows, 4, size}, at::kDouble, 1),
                          random_tensor({k_host.num_tokens(), 4, size}, at::kDouble, 2),
                          random_tensor({k_host.num_tokens(), 4, size}, at::kDouble, 3)};
      for (const auto& [dtype, tolerance] : {std::pair(at::kFloat, 2e-5), std::pair(at::kBFloat16, 2e-2)}) {
        expect_same(
            [&](const Inputs& x) {
              return packed_attention(x[0], x[1], x[2], q, k, total < 0 ? std::nullopt : std::optional(total));
            },
            [&](const Inputs& x) { return test::attention_reference(x[0], x[1], x[2], q_host, k_host, total); }, inputs,
            dtype, tolerance);
      }
    }
  }
}

// Segments of clipped rows: queries without keys, keys without queries, neither, and padding after both.
TEST_F(CudaKernelsTest, PackedAttentionPartsEqualTheCpus) {
  const std::vector<std::int64_t> queries{70, 0, 33, 0, 40, 1}, keys{70, 20, 0, 0, 200, 5};
  const Segments q_host = Segments::from_lengths(queries), k_host = Segments::from_lengths(keys);
  const Segments q_segments = Segments::from_lengths(queries, device_),
                 k_segments = Segments::from_lengths(keys, device_);
  const std::int64_t num_queries = q_host.num_tokens() + 7, num_keys = k_host.num_tokens() + 9,
                     used = q_host.num_tokens();
  for (const auto& [dtype, tolerance] : {std::pair(at::kFloat, 2e-5), std::pair(at::kBFloat16, 2e-2)}) {
    const at::Tensor q = random_tensor({num_queries, 4, 72}, at::kDouble, 1).to(dtype);
    const at::Tensor kv = random_tensor({num_keys, 2, 4, 72}, at::kDouble, 2).to(dtype);
    const at::Tensor grad = random_tensor({num_queries, 4, 72}, at::kDouble, 3).to(dtype);
    const auto halves = [&](at::Device device, at::ScalarType type, const Segments& of_q, const Segments& of_k) {
      const auto on = [&](const at::Tensor& x) { return x.to(device, type); };
      const at::Tensor k = on(kv).select(1, 0), v = on(kv).select(1, 1);
      const AttentionPart part = packed_attention_forward(on(q), k, v, of_q, of_k);
      const AttentionGradients grads =
          packed_attention_backward(on(grad), on(q), k, v, part.out_THd, part.lse_HT, of_q, of_k);
      return std::pair(part, grads);
    };
    const auto [got, found] = halves(device_, dtype, q_segments, k_segments);
    const auto [want, wanted] = halves(at::kCPU, at::kDouble, q_host, k_host);
    EXPECT_LT(test::relative_error(got.out_THd, want.out_THd), tolerance);
    EXPECT_EQ(got.out_THd.slice(0, used).abs().max().item<double>(), 0);
    EXPECT_EQ(got.lse_HT.scalar_type(), at::kFloat);
    const at::Tensor lse = got.lse_HT.to(at::kCPU);
    EXPECT_TRUE(at::equal(lse.isneginf(), want.lse_HT.isneginf()));
    EXPECT_LT(test::relative_error(lse.masked_fill(lse.isneginf(), 0), want.lse_HT.masked_fill(lse.isneginf(), 0)),
              tolerance);
    EXPECT_LT(test::relative_error(found.q_THd, wanted.q_THd), tolerance);
    EXPECT_LT(test::relative_error(found.k_LHd, wanted.k_LHd), tolerance);
    EXPECT_LT(test::relative_error(found.v_LHd, wanted.v_LHd), tolerance);
    EXPECT_EQ(found.k_LHd.narrow(0, 70, 20).abs().max().item<double>(), 0);  // keys that nobody asked
    EXPECT_EQ(found.v_LHd.slice(0, k_host.num_tokens()).abs().max().item<double>(), 0);
  }
}

TEST_F(CudaKernelsTest, SplitHeadsNormEqualsTheCpus) {
  const auto op = [](const Inputs& x) { return at::cat(split_heads_norm(x[0], 4, 3, {x[1], x[2]}, 1e-5), -1); };
  const Inputs inputs{random_tensor({50, 4 * 3 * 72}), random_tensor({72}, at::kDouble, 2),
                      random_tensor({72}, at::kDouble, 3)};
  expect_same(op, op, inputs, at::kFloat, kFloatTolerance);
  expect_same(op, op, inputs, at::kBFloat16, kBfloat16Tolerance);
}

TEST_F(CudaKernelsTest, PhiloxNormalIsWithinFourUlpOfTheCpus) {
  for (const std::uint64_t first : {0U, 1U, 6U}) {
    at::Tensor host = at::empty({100003}), device = at::empty({100003}, at::TensorOptions(device_));
    philox_normal_(host, 0x123456789ABCDEFULL, 0xFEDCBA9876543210ULL, Purpose::kNoise, first);
    philox_normal_(device, 0x123456789ABCDEFULL, 0xFEDCBA9876543210ULL, Purpose::kNoise, first);
    const at::Tensor back = device.to(at::kCPU);
    const at::Tensor ulps = (host.view(at::kInt) - back.view(at::kInt)).abs();
    EXPECT_LE(ulps.max().item<int>(), 4);
  }
}

TEST_F(CudaKernelsTest, AdamwEqualsTheCpus) {
  std::vector<AdamwTensor> host, device;
  for (const std::int64_t size : {5, 100000}) {
    const auto seed = static_cast<std::uint64_t>(size);
    host.push_back({random_tensor({size}, at::kFloat, seed), random_tensor({size}, at::kFloat, seed + 1),
                    at::zeros({size}), at::zeros({size}), at::zeros({size}, at::kBFloat16), 0.1});
    const AdamwTensor& h = host.back();
    device.push_back({h.master.to(device_), h.gradient.to(device_), h.exp_avg.to(device_), h.exp_avg_sq.to(device_),
                      h.compute.to(device_), 0.1});
  }
  for (std::int64_t step = 1; step <= 3; ++step) {
    adamw_step(host, {.lr = 0.01, .step = step});
    adamw_step(device, {.lr = 0.01, .step = step});
  }
  for (std::size_t i = 0; i < host.size(); ++i) {
    EXPECT_LT(test::relative_error(device[i].master, host[i].master), 1e-6);
    EXPECT_TRUE(at::equal(device[i].compute, device[i].master.to(at::kBFloat16)));
  }
  EXPECT_NEAR(sum_of_squares({device[1].gradient}) / sum_of_squares({host[1].gradient}), 1, 1e-12);
}

}  // namespace
}  // namespace dfm::ops
