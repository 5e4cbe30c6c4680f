#include "comm/shm_window.h"

#include <ATen/ATen.h>

#include <cstring>

namespace dfm::comm {

at::Tensor Staging::get() {
  if (!pinned_.defined()) pinned_ = at::empty({num_bytes_}, at::TensorOptions(at::kByte).pinned_memory(true));
  return pinned_;
}

Window::Window(const at::Tensor& tensor, Staging& staging)
    : num_bytes_(static_cast<std::int64_t>(tensor.nbytes())), staging_(&staging) {
  if (tensor.is_cpu()) {
    data_ = static_cast<std::byte*>(tensor.mutable_data_ptr());
  } else if (num_bytes_ > 0) {
    const at::NoGradGuard no_grad;
    flat_ = tensor.detach().view(-1).view(at::kByte);
  }
}

void Window::read(std::byte* to, std::int64_t offset, std::int64_t count) const {
  if (count == 0) return;
  if (data_ != nullptr) {
    std::memcpy(to, data_ + offset, static_cast<std::size_t>(count));
    return;
  }
  const at::Tensor pinned = staging_->get();
  for (std::int64_t done = 0; done < count; done += staging_->num_bytes()) {
    const std::int64_t length = std::min(staging_->num_bytes(), count - done);
    pinned.narrow(0, 0, length).copy_(flat_.narrow(0, offset + done, length));
    std::memcpy(to + done, pinned.const_data_ptr(), static_cast<std::size_t>(length));
  }
}

void Window::write(const std::byte* from, std::int64_t offset, std::int64_t count) const {
  if (count == 0) return;
  if (data_ != nullptr) {
    std::memcpy(data_ + offset, from, static_cast<std::size_t>(count));
    return;
  }
  const at::Tensor pinned = staging_->get();
  for (std::int64_t done = 0; done < count; done += staging_->num_bytes()) {
    const std::int64_t length = std::min(staging_->num_bytes(), count - done);
    std::memcpy(pinned.mutable_data_ptr(), from + done, static_cast<std::size_t>(length));
    flat_.narrow(0, offset + done, length).copy_(pinned.narrow(0, 0, length));
  }
}

}  // namespace dfm::comm
