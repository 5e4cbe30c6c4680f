#pragma once
// The World of several ranks.
#include <memory>
#include <mutex>

#include "comm/member.h"
#include "comm/operations.h"
#include "comm/rendezvous.h"
#include "comm/watchdog.h"
#include "dfm/comm/world.h"

namespace dfm::comm {

class SharedWorld : public World {
 public:
  SharedWorld(const Launch& launch, const WorldOptions& options);
  ~SharedWorld() override;

  [[nodiscard]] const Launch& launch() const override { return launch_; }
  [[nodiscard]] Backend backend() const override { return backend_; }
  GroupPtr group(const std::string& name, const std::vector<int>& ranks) override;
  [[nodiscard]] GroupPtr all() override;
  std::vector<std::string> gather_text(const std::string& mine) override;
  void set_place(const std::string& place) override { operations_.set_place(place); }
  bool report_failure(ExitCode code, const std::string& line) override { return watchdog_->report(code, line); }
  [[nodiscard]] ExitCode first_cause() const override { return watchdog_->first_cause(); }
  [[nodiscard]] std::string failure_label() const override { return watchdog_->label(); }
  [[noreturn]] void quit(ExitCode cause) override { watchdog_->quit(cause); }
  void leave() override;

 private:
  void choose_backend(const WorldOptions& options);
  void check_backend() const;
  // Waits until all keys are there (the watchdog ends the process if they never are).
  void await(const std::vector<std::string>& keys);
  // Runs a use of the store; its loss is a CommError, unless the watchdog ends the process before.
  template <typename Use>
  auto with_store(Use&& use);

  Launch launch_;
  Backend backend_ = Backend::kShm;
  at::Device device_;
  std::vector<int> everybody_;
  std::vector<Member> members_;
  std::shared_ptr<KeyStore> store_;
  Operations operations_;
  std::vector<GroupPtr> groups_;  // tell operations_ of theirs, so they go first
  std::map<std::string, int> num_groups_;
  GroupPtr all_;
  int num_gathered_ = 0;
  std::unique_ptr<Watchdog> watchdog_;
};

}  // namespace dfm::comm
