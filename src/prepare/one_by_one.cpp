#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "dfm/base/error.h"
#include "dfm/data/ordered_work.h"
#include "prepare/stream.h"

namespace dfm::prepare {
namespace {

class OneByOne : public ResultStream {
 public:
  OneByOne(const data::Source& source, const data::LoadLimits& limits, const std::vector<std::uint64_t>& items,
           const Encoders& encoders, Texts& texts, const StreamOptions& options)
      : items_(items),
        tokenizer_(*encoders.tokenizer),
        texts_(texts),
        loader_(source, limits, /*is_pinned=*/false, options.most_loaded_bytes),
        work_(0, items.size(), static_cast<std::uint64_t>(2 * options.num_workers + 2)),
        workers_(options.num_workers, work_, [this](std::uint64_t number) { return make(number); }) {}

  ~OneByOne() override {
    work_.stop();
    loader_.stop();
    texts_.stop();
  }

  std::optional<Result> next() override { return work_.next(); }

 private:
  Result make(std::uint64_t number) {
    const c10::InferenceMode inference;
    at::set_num_threads(1);  // of this thread: the workers fill the cores
    LoadedItem item = loader_.load(number, items_[number]);
    if (!item.problem.empty()) return skip(item, item.problem);
    // A text encoder that fails is not this item's fault: it ends the run.
    const at::Tensor rows_LE = texts_.rows(number, item.description.caption);
    try {
      const at::Tensor latent_CTHW = encode(item);
      loader_.release(number);
      return make_result(item, latent_CTHW, rows_LE);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kData) throw;
      loader_.release(number);
      return skip(item, error.what());
    }
  }

  at::Tensor encode(LoadedItem& item) const {
    const at::Tensor rgb_CTHW = item.rgb_THW3.permute({3, 0, 1, 2});
    // One copy straight into the layout that encoders want: a clip's pixels take hundreds of megabytes.
    const at::Tensor pixels_CTHW = at::empty(rgb_CTHW.sizes(), rgb_CTHW.options().dtype(at::kFloat));
    pixels_CTHW.copy_(rgb_CTHW).div_(127.5).sub_(1.0);
    item.rgb_THW3 = at::Tensor();
    return tokenizer_.encode(pixels_CTHW);
  }

  const std::vector<std::uint64_t>& items_;
  const models::VideoTokenizer& tokenizer_;
  Texts& texts_;
  ItemLoader loader_;
  data::OrderedWork<Result> work_;
  data::WorkerThreads<Result> workers_;  // last: they use all above
};

}  // namespace

std::unique_ptr<ResultStream> one_by_one(const data::Source& source, const data::LoadLimits& limits,
                                         const std::vector<std::uint64_t>& items, const Encoders& encoders,
                                         Texts& texts, const StreamOptions& options) {
  return std::make_unique<OneByOne>(source, limits, items, encoders, texts, options);
}

}  // namespace dfm::prepare
