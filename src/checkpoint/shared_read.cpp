// Ranks that read one file together: what several of them want is read and verified once.
#include <ATen/ATen.h>

#include <cstring>
#include <unordered_map>

#include "checkpoint/errors.h"
#include "checkpoint/file_plan.h"
#include "dfm/base/error.h"
#include "dfm/checkpoint/tensor_file.h"

namespace dfm::checkpoint {
namespace {

struct Request {
  std::int64_t entry = 0;
  comm::Slice slice;
};

// Whether the slice's elements follow each other in the whole.
bool is_one_run(const std::vector<std::int64_t>& shape, const comm::Slice& slice) {
  if (slice.dim < 0) return true;
  const auto dim = static_cast<std::size_t>(slice.dim);
  std::int64_t num_rows = 1;
  for (std::size_t d = 0; d < dim; ++d) num_rows *= shape[d];
  return num_rows <= 1 || slice.end - slice.begin == shape[dim];
}

// A slice of a flat whole: a view where it can be one.
at::Tensor extract(const at::Tensor& whole, const std::vector<std::int64_t>& shape, const comm::Slice& slice) {
  at::Tensor part;
  const auto element = whole.element_size();
  comm::for_each_run(shape, slice, [&](std::int64_t at, std::int64_t own, std::int64_t count) {
    if (count == slice.numel()) {
      part = whole.narrow(0, at, count);
      return;
    }
    if (!part.defined()) part = at::empty({slice.numel()}, whole.options());
    std::memcpy(static_cast<std::byte*>(part.mutable_data_ptr()) + own * element,
                static_cast<const std::byte*>(whole.const_data_ptr()) + at * element,
                static_cast<std::size_t>(count * element));
  });
  return part;
}

class SharedRead {
 public:
  SharedRead(const TensorFile& file, const std::vector<comm::WantedSlice>& wanted, comm::World& world)
      : file_(file), wanted_(wanted), world_(world), all_(world.all()), wanted_by_(file.entries().size()) {
    if (world.backend() == comm::Backend::kNccl) transport_ = at::kCUDA;
    gather_requests();
    choose_shared();
  }

  void run() {
    file_.read_slices(own_);
    std::size_t num_rounds = 0;
    for (const auto& list : shared_of_) num_rounds = std::max(num_rounds, list.size());
    for (std::size_t round = 0; round < num_rounds; ++round) read_round(round);
  }

 private:
  struct Asked {
    int rank = 0;
    std::size_t number = 0;  // of the rank's wanted slices
    comm::Slice slice;
  };
  static constexpr std::int64_t kFields = 6;

  // All ranks learn what each wants.
  void gather_requests() {
    std::unordered_map<std::string, std::int64_t> entry_of;
    for (const TensorFile::Entry& entry : file_.entries())
      entry_of.emplace(entry.name, static_cast<std::int64_t>(entry_of.size()));
    std::vector<std::int64_t> mine = {0};  // their number
    for (const comm::WantedSlice& one : wanted_) {
      const comm::Slice& slice = one.slice;
      const std::int64_t entry = entry_of.at(one.name);
      mine.insert(mine.end(), {entry, slice.dim, slice.begin, slice.end, slice.first, slice.last});
    }
    mine[0] = static_cast<std::int64_t>(wanted_.size());
    const at::TensorOptions longs = at::TensorOptions().dtype(at::kLong);
    at::Tensor most = at::full({1}, mine[0], longs.device(transport_));
    all_->all_reduce(most, comm::Reduce::kMax).wait();
    const std::int64_t stride = 1 + kFields * most.item<std::int64_t>();
    mine.resize(static_cast<std::size_t>(stride));
    const at::Tensor in = at::tensor(mine, longs).to(transport_);
    const at::Tensor out = at::empty({stride * world_.size()}, in.options());
    all_->all_gather(out, in).wait();
    const at::Tensor host = out.to(at::kCPU);
    for (int rank = 0; rank < world_.size(); ++rank) {
      const std::int64_t* field = host.const_data_ptr<std::int64_t>() + rank * stride;
      const auto count = static_cast<std::size_t>(*field++);
      for (std::size_t i = 0; i < count; ++i, field += kFields) {
        const comm::Slice slice{static_cast<int>(field[1]), field[2], field[3], field[4], field[5]};
        if (slice.numel() > 0) wanted_by_[static_cast<std::size_t>(field[0])].push_back({rank, i, slice});
      }
    }
  }

  // A tensor is shared when ranks by themselves would read much of it more than once. The others each rank reads.
  void choose_shared() {
    std::vector<std::size_t> shared;
    std::vector<std::uint64_t> sizes;
    for (std::size_t i = 0; i < wanted_by_.size(); ++i) {
      const TensorFile::Entry& entry = file_.entries()[i];
      const std::uint64_t whole = bytes_of_tensor(entry.shape, entry.dtype);
      std::uint64_t alone = 0;
      for (const Asked& asked : wanted_by_[i]) {
        alone += is_one_run(entry.shape, asked.slice)
                     ? static_cast<std::uint64_t>(asked.slice.numel()) * c10::elementSize(entry.dtype)
                     : whole;
      }
      if (alone > whole + whole / 2) {
        shared.push_back(i);
        sizes.push_back(whole);
        continue;
      }
      for (const Asked& asked : wanted_by_[i]) {
        if (asked.rank == world_.rank()) own_.push_back(wanted_[asked.number]);
      }
    }
    shared_of_ = deal_out(sizes, world_.size());
    for (auto& list : shared_of_) {
      for (std::size_t& number : list) number = shared[number];
    }
  }

  // Whether every rank wants the same of it: a replicated tensor.
  bool is_for_all(std::size_t entry) const {
    const std::vector<Asked>& asked = wanted_by_[entry];
    bool is_same = asked.size() == static_cast<std::size_t>(world_.size());
    for (std::size_t rank = 0; is_same && rank < asked.size(); ++rank)
      is_same = asked[rank].rank == static_cast<int>(rank) && asked[rank].slice == asked[0].slice;
    return is_same;
  }

  void read_round(std::size_t round) {
    std::vector<comm::Transfer> sends, receives, broadcasts;  // a broadcast's peer is its root
    std::vector<std::pair<at::Tensor, at::Tensor>> arrived;   // target, what goes into it
    for (int owner = 0; owner < world_.size(); ++owner) {
      const auto& list = shared_of_[static_cast<std::size_t>(owner)];
      if (round >= list.size()) continue;
      const TensorFile::Entry& entry = file_.entries()[list[round]];
      const bool is_mine = owner == world_.rank();
      const bool is_broadcast = is_for_all(list[round]);
      const at::Tensor whole = is_mine ? file_.read(entry.name).view(-1) : at::Tensor();
      for (const Asked& asked : wanted_by_[list[round]]) {
        const bool is_for_me = asked.rank == world_.rank();
        if (is_mine && is_for_me) {
          const at::Tensor part = extract(whole, entry.shape, asked.slice);
          wanted_[asked.number].target.detach().copy_(part);
          if (is_broadcast) broadcasts.push_back({owner, part.to(transport_).view(at::kByte)});
        } else if (is_mine && !is_broadcast) {
          const at::Tensor part = extract(whole, entry.shape, asked.slice).to(transport_);
          sends.push_back({asked.rank, part.view(at::kByte)});
        } else if (is_for_me) {
          const at::Tensor target = wanted_[asked.number].target.detach();
          const bool is_direct = target.device().type() == transport_.type() && target.scalar_type() == entry.dtype;
          const at::Tensor part =
              is_direct ? target
                        : at::empty({asked.slice.numel()}, at::TensorOptions().dtype(entry.dtype).device(transport_));
          (is_broadcast ? broadcasts : receives).push_back({owner, part.view(at::kByte)});
          if (!is_direct) arrived.emplace_back(target, part);
        }
      }
    }
    for (const auto& [root, bytes] : broadcasts) all_->broadcast(bytes, root).wait();
    if (!sends.empty() || !receives.empty()) all_->exchange(sends, receives).wait();
    for (const auto& [target, part] : arrived) target.copy_(part);
  }

  const TensorFile& file_;
  const std::vector<comm::WantedSlice>& wanted_;
  comm::World& world_;
  comm::GroupPtr all_;
  at::Device transport_ = at::kCPU;
  std::vector<std::vector<Asked>> wanted_by_;        // by entry, in the order of ranks
  std::vector<comm::WantedSlice> own_;               // what this rank reads for itself alone
  std::vector<std::vector<std::size_t>> shared_of_;  // by rank: the entries that it reads for all
};

}  // namespace

void TensorFile::read_slices(const std::vector<comm::WantedSlice>& wanted, comm::World& world) const {
  check(wanted);
  if (world.size() == 1 || content_id() == 0) return read_slices(wanted);  // others' files are mapped by every rank
  as_checkpoint_error([&] { SharedRead(*this, wanted, world).run(); });
}

}  // namespace dfm::checkpoint
