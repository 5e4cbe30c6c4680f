#pragma once
// Captions encoded far ahead of the pixels, many at once, by one rank for all ranks of its host, and shared through
// files of the run's folder: a large text encoder is loaded once, whatever the number of ranks, and costs no memory
// that grows with the data set.
//
// The shares of the host's ranks are cut into the same number of chunks; chunk c holds the captions of part c of each
// share that no chunk before it has. It is one file, written beside its name and renamed; ranks look into them in
// order. docs/formats.md, "While it is being made".
#include <ATen/core/Tensor.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "dfm/data/source.h"
#include "dfm/models/encoders.h"
#include "prepare/run_state.h"
#include "prepare/texts.h"

namespace dfm::prepare {

struct TextFilesOptions {
  std::string name;                                // in front of the files' names
  std::vector<std::vector<std::uint64_t>> shares;  // items of each rank of the host
  std::size_t own_share = 0;                       // which of them is this rank's
  std::uint64_t chunk_items = 512;                 // about so many items of all shares in a chunk
  bool is_packed = true;                           // a chunk's captions in one call of the encoder; else one by one
  std::shared_ptr<std::mutex> turn;                // held while encoding; may be null
  // Without a new chunk for so long a rank gives up waiting.
  std::chrono::duration<double> patience = std::chrono::minutes(10);
};

class TextFiles : public Texts {
 public:
  // `encoder`: null where another rank writes the files. `is_stopped` is asked while waiting.
  TextFiles(const data::Source& source, const RunState& state, const models::TextEncoder* encoder,
            TextFilesOptions options, std::function<bool()> is_stopped);
  ~TextFiles() override;
  TextFiles(const TextFiles&) = delete;
  TextFiles& operator=(const TextFiles&) = delete;

  at::Tensor rows(std::uint64_t number, const std::string& caption) override;
  void finish() override;
  void stop() override { is_ending_ = true; }
  [[nodiscard]] Counts encoded() const override;
  [[nodiscard]] std::uint64_t num_chunks() const { return num_chunks_; }

 private:
  struct Place {
    std::uint64_t chunk, offset;  // of the entry in its file
  };
  void write_all();
  void fail(std::exception_ptr error);
  std::string encode_chunk(std::uint64_t chunk, std::unordered_set<std::string>& known);
  std::vector<at::Tensor> encode(const std::vector<std::string>& captions);
  [[nodiscard]] std::string file_name(std::uint64_t chunk) const;
  [[nodiscard]] std::uint64_t chunk_of(std::uint64_t number) const;
  void wait_for(std::uint64_t chunk);
  void read_index(std::uint64_t chunk);

  const data::Source& source_;
  const RunState& state_;
  const models::TextEncoder* encoder_;
  TextFilesOptions options_;
  std::function<bool()> is_stopped_;
  std::uint64_t num_chunks_ = 1;
  std::atomic<bool> is_ending_ = false, is_written_ = false;

  mutable std::mutex mutex_;
  std::unordered_multimap<std::uint64_t, Place> places_;  // by the caption's hash
  std::uint64_t num_read_ = 0;                            // chunks
  std::chrono::steady_clock::time_point last_news_ = std::chrono::steady_clock::now();
  Counts counts_;
  std::exception_ptr error_;
  std::thread thread_;  // last: it uses all above
};

}  // namespace dfm::prepare
