#pragma once
// How far the ranks are. Shares end at different times, hours apart perhaps: a rank that waits for the others in one
// operation would run into the world's timeout. So all ranks tell each other every few seconds, on a thread of their
// own, and a rank tells only when it has got on: one that hangs is missed by the others within the timeout.
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "dfm/comm/world.h"

namespace dfm::prepare {

class Peers {
 public:
  // Called by all ranks. In a world of one nothing is told.
  explicit Peers(std::shared_ptr<comm::World> world);
  // Without finish(): the others will not hear from this rank again.
  ~Peers();
  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;

  // Items that this rank has done.
  void set_done(std::uint64_t done);
  // Items that the others have done, as far as this rank has heard.
  [[nodiscard]] std::uint64_t others_done() const;
  // This rank has done all; returns when every rank has. Calls `on_news` whenever others_done() may have grown.
  void finish(const std::function<void()>& on_news);

 private:
  void run();
  void tell_until_all_have_finished();
  bool wait_for_progress();

  std::shared_ptr<comm::World> world_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t done_ = 0, told_ = ~std::uint64_t{0}, others_done_ = 0, num_rounds_ = 0;
  bool has_finished_ = false, all_have_finished_ = false, is_stopped_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last: it uses all above
};

}  // namespace dfm::prepare
