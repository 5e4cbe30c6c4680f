#pragma once
// Groups that stand before or in place of real ones.
#include <ATen/ATen.h>

#include <numeric>
#include <stdexcept>

#include "dfm/comm/group.h"

namespace dfm::test {

// A place in a group that nobody talks in.
class SilentGroup final : public comm::Group {
 public:
  SilentGroup(int rank, int size) : Group("silent", ranks_up_to(size), rank) {}

  comm::Work all_reduce(const at::Tensor&, comm::Reduce) override { return refuse(); }
  comm::Work all_gather(const at::Tensor&, const at::Tensor&) override { return refuse(); }
  comm::Work reduce_scatter(const at::Tensor&, const at::Tensor&) override { return refuse(); }
  comm::Work all_to_all(const at::Tensor&, const at::Tensor&) override { return refuse(); }
  comm::Work broadcast(const at::Tensor&, int) override { return refuse(); }
  comm::Work exchange(const std::vector<comm::Transfer>&, const std::vector<comm::Transfer>&) override {
    return refuse();
  }
  void barrier() override { refuse(); }

 private:
  static std::vector<int> ranks_up_to(int size) {
    std::vector<int> ranks(static_cast<std::size_t>(size));
    std::iota(ranks.begin(), ranks.end(), 0);
    return ranks;
  }
  static comm::Work refuse() { throw std::logic_error("no operation was expected"); }
};

// Counts what goes through it.
class CountingGroup final : public comm::Group {
 public:
  explicit CountingGroup(comm::GroupPtr inner)
      : Group(inner->name(), inner->ranks(), inner->rank()), inner_(std::move(inner)) {}

  comm::Work all_reduce(const at::Tensor& x, comm::Reduce op) override {
    ++calls;
    return inner_->all_reduce(x, op);
  }
  comm::Work all_gather(const at::Tensor& out, const at::Tensor& in) override {
    ++calls;
    return inner_->all_gather(out, in);
  }
  comm::Work reduce_scatter(const at::Tensor& out, const at::Tensor& in) override {
    ++calls;
    return inner_->reduce_scatter(out, in);
  }
  comm::Work all_to_all(const at::Tensor& out, const at::Tensor& in) override {
    ++calls;
    return inner_->all_to_all(out, in);
  }
  comm::Work broadcast(const at::Tensor& x, int root) override {
    ++calls;
    return inner_->broadcast(x, root);
  }
  comm::Work exchange(const std::vector<comm::Transfer>& sends, const std::vector<comm::Transfer>& receives) override {
    ++calls;
    for (const comm::Transfer& transfer : sends) sent_elements += transfer.tensor.numel();
    return inner_->exchange(sends, receives);
  }
  void barrier() override { inner_->barrier(); }

  std::int64_t calls = 0, sent_elements = 0;

 private:
  comm::GroupPtr inner_;
};

}  // namespace dfm::test
