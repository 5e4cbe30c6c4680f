#pragma once
// Errors that end a run. One line, lower case, no full stop:
//   <thing with its name>: got <x>, want <y> (<where>); hint: <what to do>
// main() prints `dfm SUBCOMMAND: error: <line>` and exits with the code of the error's type.
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace dfm {

enum class ExitCode : int {
  kOk = 0,
  kConfig = 2,
  kData = 3,
  kCheckpoint = 4,
  kComm = 5,
  kResource = 6,  // disk full, out of memory
  kInternal = 70,
  kInterrupted = 130,  // after a save on SIGINT
  kTerminated = 143,   // after a save on SIGTERM
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// Each type formats its message: throw DataError("{}: got {}, want {}", path, x, y).
template <ExitCode kCode>
class CodedError : public Error {
 public:
  template <typename... Args>
  explicit CodedError(fmt::format_string<Args...> format, Args&&... args)
      : Error(kCode, fmt::format(format, std::forward<Args>(args)...)) {}
};

using ConfigError = CodedError<ExitCode::kConfig>;
using DataError = CodedError<ExitCode::kData>;
using CheckpointError = CodedError<ExitCode::kCheckpoint>;
using CommError = CodedError<ExitCode::kComm>;
using ResourceError = CodedError<ExitCode::kResource>;
using InternalError = CodedError<ExitCode::kInternal>;

// Runs `body`; an Error that leaves it gets `context: ` in front and keeps its exit code.
template <typename Body>
decltype(auto) with_context(const std::string& context, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Error& error) {
    throw Error(error.code(), context + ": " + error.what());
  }
}

}  // namespace dfm
