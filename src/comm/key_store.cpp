#include "comm/key_store.h"

#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <algorithm>
#include <cstdlib>

#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

using Bytes = std::vector<std::uint8_t>;
Bytes bytes_of(const std::string& text) { return {text.begin(), text.end()}; }
std::string text_of(const Bytes& bytes) { return {bytes.begin(), bytes.end()}; }

// LibTorch reports each failed connection on stderr, with a backtrace; ours is the one line that counts.
void silence_libtorch() {
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) setenv("TORCH_CPP_LOG_LEVEL", "FATAL", 0);
  c10::initLogging();
}

template <typename Operation>
auto guarded(Operation&& operation) {
  try {
    return operation();
  } catch (const std::exception& error) {
    const std::string text = error.what();
    throw StoreLost(text.substr(0, text.find('\n')));
  }
}

c10d::TCPStoreOptions options_of(int port, bool is_server, std::chrono::duration<double> timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(port);
  options.isServer = is_server;
  options.waitWorkers = false;
  options.timeout =
      std::max(std::chrono::duration_cast<std::chrono::milliseconds>(timeout), std::chrono::milliseconds(1000));
  return options;
}

}  // namespace

struct KeyStore::Store {
  Store(const std::string& address, const c10d::TCPStoreOptions& options) : tcp(address, options) {}
  c10d::TCPStore tcp;
};

KeyStore::KeyStore(const Launch& launch, Role role, std::chrono::duration<double> timeout)
    : prefix_(fmt::format("dfm/{}/{}/", launch.job, launch.restart_count)) {
  silence_libtorch();
  const auto options = options_of(launch.master_port, role == Role::kServer, timeout);
  try {
    store_ = std::make_unique<Store>(launch.master_address, options);
  } catch (const std::exception& error) {
    const std::string text = error.what();
    if (role == Role::kServer && text.find("EADDRINUSE") != std::string::npos) {
      throw CommError(
          "port {} of {}: got a port in use, want a free one for rank 0 to open; hint: end the other run, or set "
          "MASTER_PORT to another port",
          launch.master_port, launch.master_address);
    }
    throw StoreLost(text.substr(0, text.find('\n')));
  }
}

KeyStore::~KeyStore() = default;

void KeyStore::set(const std::string& key, const std::string& value) {
  guarded([&] { store_->tcp.set(prefix_ + key, bytes_of(value)); });
}

bool KeyStore::has(const std::vector<std::string>& keys) {
  std::vector<std::string> full;
  for (const std::string& key : keys) full.push_back(prefix_ + key);
  return guarded([&] { return store_->tcp.check(full); });
}

std::optional<std::string> KeyStore::get(const std::string& key) {
  return guarded([&]() -> std::optional<std::string> {
    if (!store_->tcp.check({prefix_ + key})) return std::nullopt;
    return text_of(store_->tcp.get(prefix_ + key));
  });
}

std::int64_t KeyStore::add(const std::string& key, std::int64_t value) {
  return guarded([&] { return store_->tcp.add(prefix_ + key, value); });
}

std::string KeyStore::claim(const std::string& key, const std::string& value) {
  return guarded([&] { return text_of(store_->tcp.compareSet(prefix_ + key, {}, bytes_of(value))); });
}

void KeyStore::remove(const std::string& key) {
  guarded([&] { store_->tcp.deleteKey(prefix_ + key); });
}

struct AgentStore::Store {
  Store() : tcp("127.0.0.1", options_of(0, true, std::chrono::seconds(60))) {}
  c10d::TCPStore tcp;
};

AgentStore::AgentStore() {
  silence_libtorch();
  store_ = std::make_unique<Store>();
}
AgentStore::~AgentStore() = default;
int AgentStore::port() const { return store_->tcp.getPort(); }

}  // namespace dfm::comm
