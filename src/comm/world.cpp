#include "dfm/comm/world.h"

#include <algorithm>
#include <mutex>

#include "comm/operations.h"
#include "comm/rendezvous.h"
#include "comm/shared_world.h"

namespace dfm::comm {
namespace {

std::mutex current_mutex;
// Kept here, so that an error that unwinds the run still finds the world through which to report.
std::shared_ptr<World> current_world;

void set_current(std::shared_ptr<World> world) {
  const std::lock_guard lock(current_mutex);
  current_world = std::move(world);
}

class SoloWorld : public World {
 public:
  SoloWorld(Launch launch, Backend backend) : launch_(std::move(launch)), backend_(backend) {}
  [[nodiscard]] const Launch& launch() const override { return launch_; }
  [[nodiscard]] Backend backend() const override { return backend_; }
  GroupPtr group(const std::string&, const std::vector<int>&) override { return alone(); }
  [[nodiscard]] GroupPtr all() override { return alone(); }
  std::vector<std::string> gather_text(const std::string& mine) override { return {mine}; }
  void set_place(const std::string&) override {}
  bool report_failure(ExitCode code, const std::string&) override {
    cause_ = code;
    return true;
  }
  [[nodiscard]] ExitCode first_cause() const override { return cause_; }
  [[nodiscard]] std::string failure_label() const override { return ""; }
  [[noreturn]] void quit(ExitCode cause) override { exit_now(cause); }
  void leave() override {}

 private:
  Launch launch_;
  Backend backend_;
  ExitCode cause_ = ExitCode::kInternal;
};

// The world that is current steps down when it is left.
class CurrentWorld : public SharedWorld {
 public:
  using SharedWorld::SharedWorld;
  void leave() override {
    SharedWorld::leave();
    set_current(nullptr);
  }
};

// The first lines in which two texts differ, for a message.
std::pair<std::string, std::string> first_difference(const std::string& a, const std::string& b) {
  const auto line_at = [](const std::string& text, std::size_t at) {
    if (at >= text.size()) return std::string("nothing");
    const std::string line = text.substr(at, text.find('\n', at) - at);
    return fmt::format("'{}'", line.substr(std::min(line.find_first_not_of(' '), line.size())));
  };
  std::size_t at = 0;
  while (true) {
    const std::size_t end_a = std::min(a.find('\n', at), a.size()), end_b = std::min(b.find('\n', at), b.size());
    const bool differ = end_a != end_b || a.compare(at, end_a - at, b, at, end_b - at) != 0;
    if (differ || end_a == a.size() || end_b == b.size()) return {line_at(a, at), line_at(b, at)};
    at = end_a + 1;
  }
}

}  // namespace

std::shared_ptr<World> World::solo() {
  static const auto world = std::make_shared<SoloWorld>(Launch{}, Backend::kShm);
  return world;
}

std::shared_ptr<World> World::join(const Launch& launch, const WorldOptions& options) {
  if (launch.world_size == 1) {
    const bool is_nccl = options.device.is_cuda() && options.backend != Backend::kShm;
    return std::make_shared<SoloWorld>(launch, is_nccl ? Backend::kNccl : Backend::kShm);
  }
  const auto world = std::make_shared<CurrentWorld>(launch, options);
  set_current(world);
  return world;
}

World* World::current() {
  const std::lock_guard lock(current_mutex);
  return current_world.get();
}

void World::require_same(const std::string& what, const std::string& mine) {
  const std::vector<std::string> texts = gather_text(mine);
  std::vector<int> others;
  for (std::size_t rank = 1; rank < texts.size(); ++rank) {
    if (texts[rank] != texts[0]) others.push_back(static_cast<int>(rank));
  }
  if (others.empty()) return;
  const auto [first, other] = first_difference(texts[0], texts[static_cast<std::size_t>(others[0])]);
  throw CommError("{}: got {} on {}, want {} as on rank 0; hint: start all ranks with the same command", what, other,
                  name_ranks(others), first);
}

void World::on_first(const std::function<void()>& body) {
  if (size() == 1) return body();
  std::string outcome;  // the code as one character, and the message
  try {
    if (is_first()) body();
  } catch (const Error& error) {
    outcome = std::string(1, static_cast<char>(error.code())) + error.what();
  }
  const std::string of_first = gather_text(outcome)[0];
  if (!of_first.empty()) {
    throw Error(static_cast<ExitCode>(static_cast<unsigned char>(of_first[0])), of_first.substr(1));
  }
}

}  // namespace dfm::comm
