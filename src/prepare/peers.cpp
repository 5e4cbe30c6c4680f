#include "prepare/peers.h"

#include <chrono>
#include <string>
#include <vector>

#include "dfm/base/error.h"

namespace dfm::prepare {
namespace {

constexpr auto kPeriod = std::chrono::seconds(2);

struct Told {
  std::uint64_t done = 0;
  bool has_finished = false;
};

std::string to_text(const Told& told) { return fmt::format("{}{}", told.has_finished ? "finished " : "", told.done); }

Told from_text(const std::string& text) {
  constexpr std::string_view kFinished = "finished ";
  const bool has_finished = text.starts_with(kFinished);
  return {std::strtoull(text.c_str() + (has_finished ? kFinished.size() : 0), nullptr, 10), has_finished};
}

}  // namespace

Peers::Peers(std::shared_ptr<comm::World> world) : world_(std::move(world)) {
  if (world_->size() > 1) {
    thread_ = std::thread([this] { run(); });
  }
}

Peers::~Peers() {
  {
    const std::lock_guard lock(mutex_);
    is_stopped_ = true;
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

void Peers::finish(const std::function<void()>& on_news) {
  if (!thread_.joinable()) return;
  std::unique_lock lock(mutex_);
  has_finished_ = true;
  changed_.notify_all();
  for (std::uint64_t seen = num_rounds_; !all_have_finished_;) {
    changed_.wait(lock, [&] { return num_rounds_ != seen || all_have_finished_ || error_; });
    if (error_) std::rethrow_exception(error_);
    seen = num_rounds_;
    lock.unlock();
    on_news();
    lock.lock();
  }
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
  changed_.wait_for(lock, kPeriod, [&] { return is_stopped_ || has_finished_; });
  while (!is_stopped_ && !has_finished_ && done_ == told_) changed_.wait_for(lock, kPeriod);
  return !is_stopped_;
}

void Peers::tell_until_all_have_finished() {
  while (wait_for_progress()) {
    Told mine;
    {
      const std::lock_guard lock(mutex_);
      mine = {done_, has_finished_};
      told_ = done_;
    }
    world_->set_place(fmt::format("encoding, {} samples done", mine.done));
    const std::vector<std::string> texts = world_->gather_text(to_text(mine));
    std::uint64_t others_done = 0;
    bool all_have_finished = true;
    for (std::size_t rank = 0; rank < texts.size(); ++rank) {
      const Told told = from_text(texts[rank]);
      if (static_cast<int>(rank) != world_->rank()) others_done += told.done;
      all_have_finished = all_have_finished && told.has_finished;
    }
    const std::lock_guard lock(mutex_);
    others_done_ = others_done;
    all_have_finished_ = all_have_finished;
    ++num_rounds_;
    changed_.notify_all();
    if (all_have_finished) return;
  }
}

}  // namespace dfm::prepare
