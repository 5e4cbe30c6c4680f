#include "prepare/text_files.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <span>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/hash.h"
#include "dfm/data/shard_writer.h"

namespace dfm::prepare {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie in memory");

// An entry of a file: this head, the caption, the rows as bfloat16.
struct Head {
  std::uint64_t caption_bytes = 0, length = 0, width = 0;
  [[nodiscard]] std::uint64_t row_bytes() const { return 2 * length * width; }
};
constexpr std::uint64_t kMostCaptionBytes = std::uint64_t{1} << 30, kMostWidth = 1 << 20;
constexpr auto kPoll = std::chrono::milliseconds(20);

template <typename T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

std::string describe_bad(const std::string& what) {
  return what + ": got a damaged file of encoded captions, want it whole; hint: run the same command again";
}

Head read_head(const File& file, std::uint64_t offset, std::uint64_t size) {
  Head head;
  if (offset + sizeof head > size) throw DataError("{}", describe_bad(file.path().string()));
  file.read_at(offset, bytes_of(head));
  const bool is_possible = head.caption_bytes <= kMostCaptionBytes && head.length <= data::kTextRows &&
                           head.width <= kMostWidth &&
                           offset + sizeof head + head.caption_bytes + head.row_bytes() <= size;
  if (!is_possible) throw DataError("{}", describe_bad(file.path().string()));
  return head;
}

std::string read_caption(const File& file, std::uint64_t offset, const Head& head) {
  std::string caption(head.caption_bytes, '\0');
  file.read_at(offset + sizeof head, std::as_writable_bytes(std::span(caption)));
  return caption;
}

}  // namespace

TextFiles::TextFiles(const data::Source& source, const RunState& state, const models::TextEncoder* encoder,
                     TextFilesOptions options, std::function<bool()> is_stopped)
    : source_(source),
      state_(state),
      encoder_(encoder),
      options_(std::move(options)),
      is_stopped_(std::move(is_stopped)) {
  std::uint64_t num_items = 0;
  for (const auto& share : options_.shares) num_items += share.size();
  num_chunks_ = std::max<std::uint64_t>(1, (num_items + options_.chunk_items - 1) / options_.chunk_items);
  if (encoder_ != nullptr) thread_ = std::thread([this] { write_all(); });
}

TextFiles::~TextFiles() {
  stop();
  if (thread_.joinable()) thread_.join();
}

std::string TextFiles::file_name(std::uint64_t chunk) const { return fmt::format("{}-{:06}", options_.name, chunk); }

// Part c of a share of n items is [c n / C, (c + 1) n / C).
std::uint64_t TextFiles::chunk_of(std::uint64_t number) const {
  const std::uint64_t size = options_.shares.at(options_.own_share).size();
  std::uint64_t chunk = number * num_chunks_ / size;
  while ((chunk + 1) * size / num_chunks_ <= number) ++chunk;
  while (chunk * size / num_chunks_ > number) --chunk;
  return chunk;
}

void TextFiles::write_all() {
  try {
    const c10::InferenceMode inference;
    std::unordered_set<std::string> known;
    for (std::uint64_t chunk = 0; chunk < num_chunks_ && !is_ending_; ++chunk) {
      const std::string bytes = encode_chunk(chunk, known);
      if (!is_ending_) state_.write(file_name(chunk), bytes);
    }
    is_written_ = true;
  } catch (const c10::OutOfMemoryError&) {
    fail(std::make_exception_ptr(
        ResourceError("text encoder {}: got no more memory for {} captions, want enough; hint: --text-encoder-offload, "
                      "a smaller --encode-batch-pixels, or a smaller --text-encoder",
                      encoder_->name(), options_.chunk_items)));
  } catch (...) {
    fail(std::current_exception());
  }
}

void TextFiles::fail(std::exception_ptr error) {
  const std::lock_guard lock(mutex_);
  error_ = std::move(error);
}

std::string TextFiles::encode_chunk(std::uint64_t chunk, std::unordered_set<std::string>& known) {
  std::vector<std::string> captions;
  for (const auto& share : options_.shares) {
    for (std::uint64_t i = chunk * share.size() / num_chunks_; i < (chunk + 1) * share.size() / num_chunks_; ++i) {
      try {
        std::string caption = source_.item(share[i]).caption.value_or("");
        if (known.insert(caption).second) captions.push_back(std::move(caption));
      } catch (const Error& error) {  // the item is skipped when its turn comes
        if (error.code() != ExitCode::kData) throw;
      }
    }
  }
  const std::vector<at::Tensor> rows = encode(captions);
  std::string bytes;
  const auto append = [&](const void* first, std::size_t size) { bytes.append(static_cast<const char*>(first), size); };
  std::int64_t num_rows = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Head head{.caption_bytes = captions[i].size(),
                    .length = static_cast<std::uint64_t>(rows[i].size(0)),
                    .width = static_cast<std::uint64_t>(rows[i].size(1))};
    append(&head, sizeof head);
    append(captions[i].data(), captions[i].size());
    append(rows[i].const_data_ptr(), head.row_bytes());
    num_rows += rows[i].size(0);
  }
  const std::lock_guard lock(mutex_);
  counts_.captions += static_cast<std::int64_t>(rows.size());
  counts_.rows += num_rows;
  return bytes;
}

// bfloat16 on the CPU. Rounded where they are, so that half the bytes travel.
std::vector<at::Tensor> TextFiles::encode(const std::vector<std::string>& captions) {
  std::vector<at::Tensor> all;
  const auto take = [&](const std::vector<std::string>& some) {
    std::unique_lock<std::mutex> turn;
    if (options_.turn) turn = std::unique_lock(*options_.turn);
    const std::vector<at::Tensor> encoded = encoder_->encode(some);
    std::vector<std::int64_t> lengths;
    for (const at::Tensor& rows : encoded) lengths.push_back(rows.size(0));
    const at::Tensor together = at::cat(encoded).to(at::kBFloat16).to(at::kCPU);
    for (const at::Tensor& rows : together.split_with_sizes(lengths)) all.push_back(rows.contiguous());
  };
  if (options_.is_packed && !captions.empty()) take(captions);
  if (!options_.is_packed) {
    for (std::size_t i = 0; i < captions.size() && !is_ending_; ++i) take({captions[i]});
  }
  return all;
}

void TextFiles::wait_for(std::uint64_t chunk) {
  const auto begin = std::chrono::steady_clock::now();
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      if (error_) std::rethrow_exception(error_);
      while (num_read_ <= chunk && state_.exists(file_name(num_read_))) {
        read_index(num_read_++);
        last_news_ = std::chrono::steady_clock::now();
      }
      if (num_read_ > chunk) return;
      // Pixels may take longer than the patience between two waits. This rank's own thread needs none: it fails aloud.
      const auto waited = std::chrono::steady_clock::now() - std::max(begin, last_news_);
      if (encoder_ == nullptr && waited > options_.patience) {
        throw CommError("captions: got no more from the rank that encodes them in {:.0f} s, want {} ({} of {} so far)",
                        options_.patience.count(), file_name(chunk), num_read_, num_chunks_);
      }
    }
    if (is_ending_ || is_stopped_()) throw Stopped();
    std::this_thread::sleep_for(kPoll);
  }
}

void TextFiles::finish() {
  while (encoder_ != nullptr && !is_written_) {
    {
      const std::lock_guard lock(mutex_);
      if (error_) std::rethrow_exception(error_);
    }
    if (is_ending_ || is_stopped_()) throw Stopped();
    std::this_thread::sleep_for(kPoll);
  }
}

void TextFiles::read_index(std::uint64_t chunk) {
  const File file(state_.path(file_name(chunk)), File::Mode::kRead);
  const std::uint64_t size = file.size();
  for (std::uint64_t offset = 0; offset < size;) {
    const Head head = read_head(file, offset, size);
    places_.emplace(fnv1a64(read_caption(file, offset, head)), Place{chunk, offset});
    offset += sizeof head + head.caption_bytes + head.row_bytes();
  }
}

at::Tensor TextFiles::rows(std::uint64_t number, const std::string& caption) {
  wait_for(chunk_of(number));
  std::vector<Place> candidates;
  {
    const std::lock_guard lock(mutex_);
    const auto [first, last] = places_.equal_range(fnv1a64(caption));
    for (auto found = first; found != last; ++found) candidates.push_back(found->second);
  }
  for (const Place& place : candidates) {
    const File file(state_.path(file_name(place.chunk)), File::Mode::kRead);
    const Head head = read_head(file, place.offset, file.size());
    if (read_caption(file, place.offset, head) != caption) continue;
    const at::Tensor rows =
        at::empty({static_cast<std::int64_t>(head.length), static_cast<std::int64_t>(head.width)}, at::kBFloat16);
    file.read_at(place.offset + sizeof head + head.caption_bytes,
                 {static_cast<std::byte*>(rows.mutable_data_ptr()), head.row_bytes()});
    return rows;
  }
  throw DataError("caption '{}': got none like it from the rank that encodes them, want the input to stay as it is",
                  caption);
}

Texts::Counts TextFiles::encoded() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

}  // namespace dfm::prepare
