#include "prepare/peers.h"

#include <chrono>
#include <sstream>
#include <string>
#include <vector>

#include "dfm/base/error.h"

namespace dfm::prepare {
namespace {

constexpr auto kPeriod = std::chrono::seconds(2);
constexpr auto kNews = std::chrono::milliseconds(500);

}  // namespace

std::string Peers::to_text(const Told& told) {
  return fmt::format("{} {} {}", told.done, told.has_finished ? 1 : 0, told.signal);
}

Peers::Told Peers::from_text(const std::string& text) {
  Told told;
  std::istringstream(text) >> told.done >> told.has_finished >> told.signal;
  return told;
}

Peers::Peers(std::shared_ptr<comm::World> world) : world_(std::move(world)) {
  if (world_->size() > 1) {
    thread_ = std::thread([this] { run(); });
  }
}

Peers::~Peers() {
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Peers::set_done(std::uint64_t done) {
  const std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(error_);
  done_ = done;
}

std::uint64_t Peers::others_done() const {
  const std::lock_guard lock(mutex_);
  return others_done_;
}

void Peers::set_waiting() {
  const std::lock_guard lock(mutex_);
  is_waiting_ = true;
}

void Peers::stop(int signal) {
  const std::lock_guard lock(mutex_);
  if (own_signal_ == 0) own_signal_ = signal;
  changed_.notify_all();
}

int Peers::stopped_by() const {
  const std::lock_guard lock(mutex_);
  return own_signal_ != 0 ? own_signal_ : heard_signal_;
}

int Peers::finish(const std::function<void()>& on_news) {
  if (!thread_.joinable()) return stopped_by();
  std::unique_lock lock(mutex_);
  has_finished_ = true;
  changed_.notify_all();
  for (std::uint64_t seen = num_rounds_; !all_have_finished_;) {
    changed_.wait_for(lock, kNews, [&] { return num_rounds_ != seen || all_have_finished_ || error_; });
    if (error_) std::rethrow_exception(error_);
    seen = num_rounds_;
    lock.unlock();
    on_news();
    lock.lock();
  }
  return heard_signal_;
}

void Peers::run() {
  try {
    tell_until_all_have_finished();
  } catch (...) {
    const std::lock_guard lock(mutex_);
    error_ = std::current_exception();
    changed_.notify_all();
  }
}

// False: there is nothing more to tell.
bool Peers::wait_for_progress() {
  std::unique_lock lock(mutex_);
  const auto is_urgent = [&] { return is_ending_ || has_finished_ || own_signal_ != told_signal_; };
  changed_.wait_for(lock, kPeriod, is_urgent);
  while (!is_urgent() && done_ == told_ && !is_waiting_) changed_.wait_for(lock, kPeriod);
  return !is_ending_;
}

void Peers::tell_until_all_have_finished() {
  while (wait_for_progress()) {
    Told mine;
    {
      const std::lock_guard lock(mutex_);
      mine = {done_, has_finished_, own_signal_};
      told_ = done_;
      told_signal_ = own_signal_;
      is_waiting_ = false;
    }
    world_->set_place(fmt::format("encoding, {} samples done", mine.done));
    hear(world_->gather_text(to_text(mine)));
    const std::lock_guard lock(mutex_);
    if (all_have_finished_) return;
  }
}

void Peers::hear(const std::vector<std::string>& texts) {
  std::uint64_t others_done = 0;
  bool all_have_finished = true;
  int signal = 0;
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    const Told told = from_text(texts[rank]);
    if (static_cast<int>(rank) != world_->rank()) others_done += told.done;
    all_have_finished = all_have_finished && told.has_finished;
    signal = std::max(signal, told.signal);
  }
  const std::lock_guard lock(mutex_);
  others_done_ = others_done;
  all_have_finished_ = all_have_finished;
  heard_signal_ = signal;
  ++num_rounds_;
  changed_.notify_all();
}

}  // namespace dfm::prepare
