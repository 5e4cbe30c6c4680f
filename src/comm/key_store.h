#pragma once
// The keys and values by which the ranks of one job find each other: LibTorch's TCPStore, as torchrun's agent runs it.
// Every operation returns at once (as fast as the server answers): nothing here waits for a key.
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dfm/comm/launch.h"

namespace dfm::comm {

// The server is gone or does not answer.
class StoreLost : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class KeyStore {
 public:
  enum class Role { kServer, kClient };
  // A server is its own first client. CommError: a server's port in use. StoreLost: no server within the time.
  KeyStore(const Launch& launch, Role role, std::chrono::duration<double> timeout);
  ~KeyStore();
  KeyStore(const KeyStore&) = delete;
  KeyStore& operator=(const KeyStore&) = delete;

  void set(const std::string& key, const std::string& value);
  bool has(const std::vector<std::string>& keys);  // all of them
  std::optional<std::string> get(const std::string& key);
  std::int64_t add(const std::string& key, std::int64_t value);  // the new sum
  // Sets the key if it is new. The value that stands there afterwards.
  std::string claim(const std::string& key, const std::string& value);
  void remove(const std::string& key);

 private:
  struct Store;
  std::string prefix_;
  std::unique_ptr<Store> store_;
};

// Whether this rank opens the store: rank 0, when no agent has.
inline bool hosts_store(const Launch& launch) { return launch.rank == 0 && !launch.uses_agent_store; }

// A server on a free port of this host, for as long as it lives (`dfm --nproc-per-node`).
class AgentStore {
 public:
  AgentStore();
  ~AgentStore();
  AgentStore(const AgentStore&) = delete;
  AgentStore& operator=(const AgentStore&) = delete;
  [[nodiscard]] int port() const;

 private:
  struct Store;
  std::unique_ptr<Store> store_;
};

}  // namespace dfm::comm
