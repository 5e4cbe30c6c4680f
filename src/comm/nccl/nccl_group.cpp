// Groups of GPUs through NCCL. Each group has a communicator and a stream of its own. An operation:
//
//   current stream   ... x is written | event a | other work ...          | wait for b (Work::wait) | x is read ...
//   group's stream                    wait for a | NCCL's kernel | event b
//
// The host waits for nothing but barriers. The caching allocator is told of the second stream, so memory that is freed
// while an operation runs is not handed out before it ends.
#include <ATen/ATen.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "comm/nccl/nccl_library.h"
#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

void require_cuda(cudaError_t status, const char* what, const std::string& group) {
  if (status == cudaSuccess) return;
  throw CommError("group {} (nccl), {}: got CUDA error '{}'", group, what, cudaGetErrorString(status));
}

class Event {
 public:
  explicit Event(const std::string& group) {
    require_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate", group);
  }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  [[nodiscard]] cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

ncclDataType_t nccl_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return ncclFloat32;
    case at::kDouble:
      return ncclFloat64;
    case at::kBFloat16:
      return ncclBfloat16;
    case at::kLong:
      return ncclInt64;
    default:
      throw InternalError("reduction between ranks: got {}, want float32, float64, bfloat16 or int64",
                          at::toString(dtype));
  }
}

std::size_t num_bytes(const at::Tensor& x) { return static_cast<std::size_t>(x.nbytes()); }

class NcclGroup final : public Group {
 public:
  explicit NcclGroup(const GroupRequest& request)
      : Group(request.name, request.ranks, request.rank),
        watch_(*request.watch),
        device_(request.device),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/true, request.device.index())) {}
  // The communicator is not destroyed: ncclCommDestroy waits for the other ranks of the host, which may be gone. A
  // group lives as long as its process.
  ~NcclGroup() override = default;

  void start(const GroupRequest& request);

  Work all_reduce(const at::Tensor& x, Reduce op) override;
  Work all_gather(const at::Tensor& out, const at::Tensor& in) override;
  Work reduce_scatter(const at::Tensor& out, const at::Tensor& in) override;
  Work all_to_all(const at::Tensor& out, const at::Tensor& in) override;
  Work broadcast(const at::Tensor& x, int root) override;
  Work exchange(const std::vector<Transfer>& sends, const std::vector<Transfer>& receives) override;
  void barrier() override;

 private:
  // Enqueues on the group's stream what `enqueue(stream)` does, after all that the current stream has now.
  template <typename Enqueue>
  std::shared_ptr<Event> run(const char* kind, const std::vector<at::Tensor>& tensors, const std::vector<int>& peers,
                             Enqueue&& enqueue);
  Work work(std::shared_ptr<Event> done) const;
  std::function<bool()> completion(const char* kind, std::shared_ptr<Event> done) const;
  // Calls between ncclGroupStart and ncclGroupEnd, which start together.
  template <typename Calls>
  void together(const char* kind, Calls&& calls) const;
  void require_nccl(ncclResult_t result, const char* kind) const;
  void require_tensor(const char* kind, const at::Tensor& x) const;
  void require_parts(const char* kind, const at::Tensor& whole, const at::Tensor& part) const;

  Watch& watch_;
  at::Device device_;
  c10::cuda::CUDAStream stream_;
  ncclComm_t comm_ = nullptr;
};

void NcclGroup::require_nccl(ncclResult_t result, const char* kind) const {
  if (result == ncclSuccess) return;
  const char* detail = ncclGetLastError(comm_);
  throw CommError("group {} (nccl), {} on rank {}: got '{}', want success{}{}; hint: NCCL_DEBUG=WARN tells more",
                  name(), kind, ranks()[static_cast<std::size_t>(rank())], ncclGetErrorString(result),
                  detail == nullptr || *detail == '\0' ? "" : ": ", detail == nullptr ? "" : detail);
}

void NcclGroup::require_tensor(const char* kind, const at::Tensor& x) const {
  if (x.is_contiguous() && x.device() == device_) return;
  throw InternalError("{} in group {} (nccl): got a tensor on {} (contiguous: {}), want a contiguous one on {}", kind,
                      name(), x.device().str(), x.is_contiguous(), device_.str());
}

void NcclGroup::require_parts(const char* kind, const at::Tensor& whole, const at::Tensor& part) const {
  require_tensor(kind, whole);
  require_tensor(kind, part);
  if (whole.numel() == part.numel() * size() && whole.scalar_type() == part.scalar_type()) return;
  throw InternalError("{} in group {} (nccl): got {} elements of {} and {} of {}, want {} equal parts of one type",
                      kind, name(), whole.numel(), at::toString(whole.scalar_type()), part.numel(),
                      at::toString(part.scalar_type()), size());
}

void NcclGroup::start(const GroupRequest& request) {
  const OperationScope scope(watch_, *this, "start");
  const c10::cuda::CUDAGuard guard(device_);
  // Multicast over NVLink is left off: it needs a service (fabric manager) that many hosts and containers lack.
  static std::once_flag once;
  std::call_once(once, [] { ::setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0); });
  ncclUniqueId id{};
  std::string bytes;
  if (rank() == 0) {
    require_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
    bytes.assign(id.internal, sizeof id.internal);
  }
  bytes = request.share(bytes);
  if (bytes.size() != sizeof id.internal) {
    throw CommError("group {} (nccl): got an id of {} bytes, want {}; hint: all ranks need the same dfm", name(),
                    bytes.size(), sizeof id.internal);
  }
  std::memcpy(id.internal, bytes.data(), bytes.size());
  require_nccl(ncclCommInitRank(&comm_, size(), id, rank()), "ncclCommInitRank");
}

template <typename Enqueue>
std::shared_ptr<Event> NcclGroup::run(const char* kind, const std::vector<at::Tensor>& tensors,
                                      const std::vector<int>& peers, Enqueue&& enqueue) {
  const c10::cuda::CUDAGuard guard(device_);
  const std::uint64_t operation = watch_.begin(*this, kind, peers);
  try {
    const Event ready(name());
    auto done = std::make_shared<Event>(name());
    const cudaStream_t current = c10::cuda::getCurrentCUDAStream(device_.index()).stream();
    require_cuda(cudaEventRecord(ready.get(), current), kind, name());
    require_cuda(cudaStreamWaitEvent(stream_.stream(), ready.get(), 0), kind, name());
    // Before the operation, so that an error on the way cannot lead to a reuse of memory that it still touches.
    for (const at::Tensor& x : tensors) {
      c10::cuda::CUDACachingAllocator::recordStream(x.storage().data_ptr(), stream_);
    }
    enqueue(stream_.stream());
    require_cuda(cudaEventRecord(done->get(), stream_.stream()), kind, name());
    watch_.end_when(operation, completion(kind, done));
    return done;
  } catch (...) {
    watch_.end(operation);
    throw;
  }
}

// For the watchdog's thread. Throws CommError when the operation has failed on the device.
std::function<bool()> NcclGroup::completion(const char* kind, std::shared_ptr<Event> done) const {
  return [comm = comm_, group = name(), device = device_, kind, done = std::move(done)] {
    // A thread that has not chosen a device would open a context on device 0.
    require_cuda(cudaSetDevice(device.index()), kind, group);
    ncclResult_t failure = ncclSuccess;
    if (ncclCommGetAsyncError(comm, &failure) != ncclSuccess || failure != ncclSuccess) {
      const char* detail = ncclGetLastError(comm);
      throw CommError("group {} (nccl), {}: got '{}'{}{}", group, kind, ncclGetErrorString(failure),
                      detail == nullptr || *detail == '\0' ? "" : ": ", detail == nullptr ? "" : detail);
    }
    const cudaError_t status = cudaEventQuery(done->get());
    if (status == cudaErrorNotReady) {
      static_cast<void>(cudaGetLastError());  // not an error: it must not be found by this thread's next call
      return false;
    }
    require_cuda(status, kind, group);
    return true;
  };
}

Work NcclGroup::work(std::shared_ptr<Event> done) const {
  return Work([device = device_, group = name(), done = std::move(done)] {
    const cudaStream_t current = c10::cuda::getCurrentCUDAStream(device.index()).stream();
    require_cuda(cudaStreamWaitEvent(current, done->get(), 0), "wait", group);
  });
}

template <typename Calls>
void NcclGroup::together(const char* kind, Calls&& calls) const {
  require_nccl(ncclGroupStart(), kind);
  try {
    calls();
  } catch (...) {
    static_cast<void>(ncclGroupEnd());
    throw;
  }
  require_nccl(ncclGroupEnd(), kind);
}

Work NcclGroup::all_reduce(const at::Tensor& x, Reduce op) {
  require_tensor("all_reduce", x);
  const ncclDataType_t type = nccl_type(x.scalar_type());
  if (x.numel() == 0) return {};
  return work(run("all_reduce", {x}, {}, [&](cudaStream_t stream) {
    void* data = x.mutable_data_ptr();
    require_nccl(ncclAllReduce(data, data, static_cast<std::size_t>(x.numel()), type,
                               op == Reduce::kSum ? ncclSum : ncclMax, comm_, stream),
                 "all_reduce");
  }));
}

Work NcclGroup::all_gather(const at::Tensor& out, const at::Tensor& in) {
  require_parts("all_gather", out, in);
  if (in.numel() == 0) return {};
  return work(run("all_gather", {out, in}, {}, [&](cudaStream_t stream) {
    require_nccl(ncclAllGather(in.const_data_ptr(), out.mutable_data_ptr(), num_bytes(in), ncclUint8, comm_, stream),
                 "all_gather");
  }));
}

Work NcclGroup::reduce_scatter(const at::Tensor& out, const at::Tensor& in) {
  require_parts("reduce_scatter", in, out);
  const ncclDataType_t type = nccl_type(in.scalar_type());
  if (out.numel() == 0) return {};
  return work(run("reduce_scatter", {out, in}, {}, [&](cudaStream_t stream) {
    require_nccl(ncclReduceScatter(in.const_data_ptr(), out.mutable_data_ptr(), static_cast<std::size_t>(out.numel()),
                                   type, ncclSum, comm_, stream),
                 "reduce_scatter");
  }));
}

Work NcclGroup::all_to_all(const at::Tensor& out, const at::Tensor& in) {
  require_tensor("all_to_all", out);
  require_tensor("all_to_all", in);
  if (out.numel() != in.numel() || out.scalar_type() != in.scalar_type() || in.numel() % size() != 0) {
    throw InternalError("all_to_all in group {}: got {} and {} elements, want as many of one type, a multiple of {}",
                        name(), out.numel(), in.numel(), size());
  }
  if (in.numel() == 0) return {};
  const std::size_t part_bytes = num_bytes(in) / static_cast<std::size_t>(size());
  return work(run("all_to_all", {out, in}, {}, [&](cudaStream_t stream) {
    const auto* from = static_cast<const std::byte*>(in.const_data_ptr());
    auto* to = static_cast<std::byte*>(out.mutable_data_ptr());
    together("all_to_all", [&] {
      for (int peer = 0; peer < size(); ++peer) {
        const std::size_t offset = static_cast<std::size_t>(peer) * part_bytes;
        require_nccl(ncclSend(from + offset, part_bytes, ncclUint8, peer, comm_, stream), "all_to_all");
        require_nccl(ncclRecv(to + offset, part_bytes, ncclUint8, peer, comm_, stream), "all_to_all");
      }
    });
  }));
}

Work NcclGroup::broadcast(const at::Tensor& x, int root) {
  require_tensor("broadcast", x);
  if (root < 0 || root >= size()) {
    throw InternalError("broadcast in group {}: got root {}, want 0 to {}", name(), root, size() - 1);
  }
  if (x.numel() == 0) return {};
  return work(run("broadcast", {x}, {}, [&](cudaStream_t stream) {
    void* data = x.mutable_data_ptr();
    require_nccl(ncclBroadcast(data, data, num_bytes(x), ncclUint8, root, comm_, stream), "broadcast");
  }));
}

// Transfers of nothing are left out: both sides know their size.
Work NcclGroup::exchange(const std::vector<Transfer>& sends, const std::vector<Transfer>& receives) {
  std::vector<at::Tensor> tensors;
  std::vector<int> peers;
  for (const auto* transfers : {&sends, &receives}) {
    for (const auto& [peer, tensor] : *transfers) {
      require_tensor("exchange", tensor);
      if (peer < 0 || peer >= size() || peer == rank()) {
        throw InternalError("exchange in group {}: rank {} got peer {}, want another of its {} ranks", name(), rank(),
                            peer, size());
      }
      if (tensor.numel() == 0) continue;
      tensors.push_back(tensor);
      peers.push_back(peer);
    }
  }
  if (tensors.empty()) return {};
  std::sort(peers.begin(), peers.end());
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  return work(run("exchange", tensors, peers, [&](cudaStream_t stream) {
    together("exchange", [&] {
      for (const auto& [peer, tensor] : sends) {
        if (tensor.numel() == 0) continue;
        require_nccl(ncclSend(tensor.const_data_ptr(), num_bytes(tensor), ncclUint8, peer, comm_, stream), "exchange");
      }
      for (const auto& [peer, tensor] : receives) {
        if (tensor.numel() == 0) continue;
        require_nccl(ncclRecv(tensor.mutable_data_ptr(), num_bytes(tensor), ncclUint8, peer, comm_, stream),
                     "exchange");
      }
    });
  }));
}

void NcclGroup::barrier() {
  const at::Tensor x = at::zeros({1}, at::TensorOptions(at::kFloat).device(device_));
  const std::shared_ptr<Event> done = run("barrier", {x}, {}, [&](cudaStream_t stream) {
    void* data = x.mutable_data_ptr();
    require_nccl(ncclAllReduce(data, data, 1, ncclFloat32, ncclSum, comm_, stream), "barrier");
  });
  require_cuda(cudaEventSynchronize(done->get()), "barrier", name());
}

GroupPtr make_group(const GroupRequest& request) {
  auto group = std::make_shared<NcclGroup>(request);
  group->start(request);
  return group;
}

}  // namespace
}  // namespace dfm::comm

extern "C" __attribute__((visibility("default"))) const dfm::comm::NcclLibrary* dfm_nccl_library() {
  static const dfm::comm::NcclLibrary library{.make_group = dfm::comm::make_group};
  return &library;
}
