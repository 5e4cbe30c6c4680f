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
#include <string>
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
  // This rank waits for another, which is no hanging: it tells although it does not get on.
  void set_waiting();
  // This rank got a signal, and all are to end.
  void stop(int signal);
  // 0, or the signal that some rank got: the work is to end.
  [[nodiscard]] int stopped_by() const;
  // This rank has done all, or has ended its work because of stopped_by(); returns when every rank has. Gives on every
  // rank the same: 0, or the signal for which some rank has ended. Calls `on_news` now and then.
  int finish(const std::function<void()>& on_news);

 private:
  // What a rank tells: items done, whether it has finished, the signal it has got.
  struct Told {
    std::uint64_t done = 0;
    bool has_finished = false;
    int signal = 0;
  };
  static std::string to_text(const Told& told);
  static Told from_text(const std::string& text);
  void run();
  void tell_until_all_have_finished();
  bool wait_for_progress();
  void hear(const std::vector<std::string>& texts);

  std::shared_ptr<comm::World> world_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t done_ = 0, told_ = ~std::uint64_t{0}, others_done_ = 0, num_rounds_ = 0;
  int own_signal_ = 0, told_signal_ = 0, heard_signal_ = 0;
  bool has_finished_ = false, all_have_finished_ = false, is_waiting_ = false, is_ending_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last: it uses all above
};

}  // namespace dfm::prepare
