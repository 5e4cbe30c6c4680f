#pragma once
// Collective operations of an ordered set of ranks. Every rank of the group calls the same operations in the same order
// with sizes and dtypes that agree; tensors are contiguous and on the group's kind of device. Element types: float32,
// float64, bfloat16, int64, uint8 (sums: the first four). All ranks get the same bits. Through shared
// memory sums have a fixed order, the same in each run, and bfloat16 is summed in float32 and rounded once; NCCL
// chooses the order, and rounds bfloat16 at each hop.
//
//   group->all_reduce(loss).wait();
//   comm::Work work = group->reduce_scatter(shard, bucket);   // runs beside what comes next
//   ...
//   work.wait();                                              // before `shard` is read or `bucket` written
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace dfm::comm {

enum class Reduce { kSum, kMax };

// An operation under way. Copies mean the same one. wait() orders what follows on this thread (for CUDA: on the current
// stream, without blocking the host) after it. A Work that is dropped still completes.
class Work {
 public:
  Work() = default;  // done
  explicit Work(std::function<void()> wait) : wait_(std::move(wait)) {}
  void wait() const {
    if (wait_) wait_();
  }

 private:
  std::function<void()> wait_;
};

// One side of a point-to-point transfer: flat bytes of a contiguous tensor. `peer` is a rank of the group.
struct Transfer {
  int peer = 0;
  at::Tensor tensor;
};

class Group {
 public:
  virtual ~Group() = default;
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  [[nodiscard]] const std::string& name() const { return name_; }         // "tensor", "data", ... for messages
  [[nodiscard]] const std::vector<int>& ranks() const { return ranks_; }  // of the world, in group order
  [[nodiscard]] int rank() const { return rank_; }                        // of this process in the group
  [[nodiscard]] int size() const { return static_cast<int>(ranks_.size()); }
  [[nodiscard]] bool is_alone() const { return size() == 1; }

  // In place.
  virtual Work all_reduce(const at::Tensor& x, Reduce op = Reduce::kSum) = 0;
  // out: size() parts of in.numel() elements, in rank order. `in` may be this rank's part of `out`.
  virtual Work all_gather(const at::Tensor& out, const at::Tensor& in) = 0;
  // in: size() parts of out.numel() elements; out: the sum of part rank(). `out` may be that part of `in`; the other
  // parts of `in` are then undefined.
  virtual Work reduce_scatter(const at::Tensor& out, const at::Tensor& in) = 0;
  // Part j of `in` goes to rank j; part i of `out` comes from rank i. Equal parts; in and out do not overlap.
  virtual Work all_to_all(const at::Tensor& out, const at::Tensor& in) = 0;
  virtual Work broadcast(const at::Tensor& x, int root) = 0;
  // All these transfers at once, any sizes (0 too); only the ranks named take part. A transfer to this rank itself is
  // not allowed. Several to one peer match in order.
  virtual Work exchange(const std::vector<Transfer>& sends, const std::vector<Transfer>& receives) = 0;
  // Returns when every rank has called it.
  virtual void barrier() = 0;

 protected:
  Group(std::string name, std::vector<int> ranks, int rank)
      : name_(std::move(name)), ranks_(std::move(ranks)), rank_(rank) {}

 private:
  std::string name_;
  std::vector<int> ranks_;
  int rank_ = 0;
};
using GroupPtr = std::shared_ptr<Group>;

// The group of this rank by itself: every operation is a copy or nothing, on any device.
GroupPtr alone(int rank = 0);

}  // namespace dfm::comm
