#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>

#include "checkpoint/errors.h"
#include "checkpoint/file_plan.h"
#include "checkpoint/integrity.h"
#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/hash.h"
#include "dfm/checkpoint/tensor_file.h"

namespace dfm::checkpoint {
namespace {

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

// Takes the data of one entry in order; at the end writes its header, which holds the crc32.
class EntryWriter {
 public:
  EntryWriter(File& file, formats::ZipEntry& entry, std::vector<std::byte>& buffer)
      : file_(file), entry_(entry), buffer_(buffer) {
    buffer_.clear();
    entry_.crc32 = 0;
  }

  void add(std::span<const std::byte> data) {
    while (!data.empty()) {
      if (buffer_.empty() && data.size() >= kBlockBytes) {
        write_block(data.first(kBlockBytes));  // without a copy
        data = data.subspan(kBlockBytes);
        continue;
      }
      const auto part = data.first(std::min<std::size_t>(data.size(), kBlockBytes - buffer_.size()));
      buffer_.insert(buffer_.end(), part.begin(), part.end());
      data = data.subspan(part.size());
      if (buffer_.size() == kBlockBytes) flush();
    }
  }

  BlockSums finish() {
    flush();
    if (written_ != entry_.size)
      throw InternalError("tensor file: entry {}: got another size than planned", entry_.name);
    file_.write_at(entry_.header_offset, as_bytes(formats::zip_header(entry_)));
    return std::move(sums_);
  }

 private:
  void flush() {
    if (!buffer_.empty()) write_block(buffer_);
    buffer_.clear();
  }
  void write_block(std::span<const std::byte> block) {
    if (block.size() > entry_.size - written_)
      throw InternalError("tensor file: entry {}: got too many bytes", entry_.name);
    sums_.push_back(crc32c(block));
    entry_.crc32 = formats::zip_crc32(block, entry_.crc32);
    file_.write_at(entry_.data_offset + written_, block);
    written_ += block.size();
  }

  File& file_;
  formats::ZipEntry& entry_;
  std::vector<std::byte>& buffer_;
  BlockSums sums_;
  std::uint64_t written_ = 0;
};

// One rank's part in writing a file.
class Writer {
 public:
  Writer(const std::filesystem::path& path, const std::vector<comm::ShardedTensor>& tensors, const Scalars& scalars,
         comm::World& world)
      : tensors_(tensors), world_(world), all_(world.all()), plan_(plan_file(tensors, scalars, world.size())) {
    if (world.backend() == comm::Backend::kNccl) transport_ = at::kCUDA;
    check_local();
    world.on_first([&] {
      File made(path, File::Mode::kCreate);
      made.allocate(plan_.file_size());  // whole first: no rank writes past the end
      made.close();
    });
    check_agreement();
    file_.emplace(path, File::Mode::kWrite);
    sums_.resize(plan_.zip.entries.size() - 1);
    buffer_.reserve(kBlockBytes);
  }

  std::uint32_t run() {
    std::size_t num_rounds = 0;
    for (const auto& list : plan_.tensors_of) num_rounds = std::max(num_rounds, list.size());
    for (std::size_t round = 0; round < num_rounds; ++round) write_round(round);
    if (world_.is_first()) {
      for (std::size_t i = 0; i < plan_.leading.size(); ++i) sums_[i] = write_entry(i, as_bytes(plan_.leading[i]));
    } else {
      file_->sync();  // before rank 0 writes what makes the file readable
    }
    collect_sums();
    at::Tensor id = at::zeros({1}, at::kLong);
    if (world_.is_first()) id.fill_(static_cast<std::int64_t>(finish()));
    if (world_.size() > 1) {
      id = id.to(transport_);
      all_->broadcast(id, 0).wait();
    }
    file_->close();
    return static_cast<std::uint32_t>(id.item<std::int64_t>());
  }

 private:
  void check_local() const {
    for (const comm::ShardedTensor& tensor : tensors_) {
      std::size_t next = 0;
      for (const comm::Piece& piece : tensor.pieces) {
        if (piece.rank < 0 || piece.rank >= world_.size())
          throw InternalError("tensor {}: got a piece on rank {} of {}", tensor.name, piece.rank, world_.size());
        if (piece.rank != world_.rank()) continue;
        const bool fits = next < tensor.local.size() && tensor.local[next].numel() == piece.slice.numel() &&
                          tensor.local[next].scalar_type() == tensor.dtype && tensor.local[next].is_contiguous();
        if (!fits) throw InternalError("tensor {}: got other local data than piece {} says", tensor.name, next);
        ++next;
      }
    }
  }

  void check_agreement() {
    if (world_.size() == 1) return;
    const auto mine = static_cast<std::int64_t>(plan_.fingerprint);
    at::Tensor prints = at::empty({world_.size()}, at::TensorOptions().dtype(at::kLong).device(transport_));
    all_->all_gather(prints, at::full({1}, mine, prints.options())).wait();
    prints = prints.to(at::kCPU);
    const auto* print = prints.const_data_ptr<std::int64_t>();
    for (int rank = 1; rank < world_.size(); ++rank) {
      if (print[rank] != print[0])
        throw InternalError("{} tensors to save: got other names, shapes or parts on rank {} than on rank 0",
                            tensors_.size(), rank);
    }
  }

  // Each rank's next tensor: its pieces come from all ranks at once, then it is written.
  void write_round(std::size_t round) {
    std::vector<comm::Transfer> sends, receives;
    std::vector<at::Tensor> pieces;  // of my tensor, on this host or still to arrive on the transport's device
    for (int owner = 0; owner < world_.size(); ++owner) {
      const auto& list = plan_.tensors_of[static_cast<std::size_t>(owner)];
      if (round >= list.size()) continue;
      const comm::ShardedTensor& tensor = tensors_[list[round]];
      const bool is_mine = owner == world_.rank();
      std::size_t next_local = 0;
      for (const comm::Piece& piece : tensor.pieces) {
        const bool is_here = piece.rank == world_.rank();
        const at::Tensor local = is_here ? tensor.local[next_local++] : at::Tensor();
        if (is_mine) pieces.push_back(is_here ? local : empty_piece(tensor, piece));
        if (piece.slice.numel() == 0 || is_mine == is_here) continue;
        if (is_mine) receives.push_back({piece.rank, pieces.back().view(at::kByte)});
        if (is_here) sends.push_back({owner, local.to(transport_).view(at::kByte)});
      }
    }
    if (!sends.empty() || !receives.empty()) all_->exchange(sends, receives).wait();
    const auto& mine = plan_.tensors_of[static_cast<std::size_t>(world_.rank())];
    if (round < mine.size()) write_tensor(mine[round], pieces);
  }

  at::Tensor empty_piece(const comm::ShardedTensor& tensor, const comm::Piece& piece) const {
    return at::empty({piece.slice.numel()}, at::TensorOptions().dtype(tensor.dtype).device(transport_));
  }

  void write_tensor(std::size_t index, std::vector<at::Tensor>& pieces) {
    struct Run {
      std::int64_t whole;
      std::span<const std::byte> data;
    };
    const comm::ShardedTensor& tensor = tensors_[index];
    const auto element = static_cast<std::int64_t>(c10::elementSize(tensor.dtype));
    std::vector<Run> runs;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      pieces[i] = pieces[i].to(at::kCPU);
      const std::span<const std::byte> data = bytes_of(pieces[i]);
      comm::for_each_run(tensor.shape, tensor.pieces[i].slice,
                         [&](std::int64_t whole, std::int64_t own, std::int64_t count) {
                           runs.push_back({whole * element, data.subspan(static_cast<std::size_t>(own * element),
                                                                         static_cast<std::size_t>(count * element))});
                         });
    }
    std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.whole < b.whole; });
    EntryWriter out(*file_, plan_.zip.entries[plan_.entry_of(index)], buffer_);
    std::int64_t end = 0;
    for (const Run& run : runs) {
      if (run.whole != end) throw InternalError("tensor {}: got pieces that leave gaps or overlap", tensor.name);
      out.add(run.data);
      end += static_cast<std::int64_t>(run.data.size());
    }
    sums_[plan_.entry_of(index)] = out.finish();
  }

  BlockSums write_entry(std::size_t index, std::span<const std::byte> data) {
    EntryWriter out(*file_, plan_.zip.entries[index], buffer_);
    out.add(data);
    return out.finish();
  }

  // Checksums of what the others have written come to rank 0: of each tensor its crc32, then its blocks'.
  void collect_sums() {
    const auto num_words = [&](int rank) {
      std::size_t count = 0;
      for (const std::size_t tensor : plan_.tensors_of[static_cast<std::size_t>(rank)])
        count += 1 + num_blocks(plan_.zip.entries[plan_.entry_of(tensor)].size);
      return static_cast<std::int64_t>(count * sizeof(std::uint32_t));
    };
    const at::TensorOptions bytes = at::TensorOptions().dtype(at::kByte);
    if (!world_.is_first()) {
      std::vector<std::uint32_t> words;
      for (const std::size_t tensor : plan_.tensors_of[static_cast<std::size_t>(world_.rank())]) {
        const std::size_t entry = plan_.entry_of(tensor);
        words.push_back(plan_.zip.entries[entry].crc32);
        words.insert(words.end(), sums_[entry].begin(), sums_[entry].end());
      }
      if (words.empty()) return;
      const at::Tensor out = at::empty({num_words(world_.rank())}, bytes);
      std::memcpy(out.mutable_data_ptr(), words.data(), out.nbytes());
      all_->exchange({{0, out.to(transport_)}}, {}).wait();
      return;
    }
    std::vector<comm::Transfer> receives;
    for (int rank = 1; rank < world_.size(); ++rank) {
      if (num_words(rank) > 0) receives.push_back({rank, at::empty({num_words(rank)}, bytes.device(transport_))});
    }
    if (receives.empty()) return;
    all_->exchange({}, receives).wait();
    for (const auto& [rank, received] : receives) {
      const at::Tensor host = received.to(at::kCPU);
      std::vector<std::uint32_t> words(host.nbytes() / sizeof(std::uint32_t));
      std::memcpy(words.data(), host.const_data_ptr(), host.nbytes());
      auto word = words.begin();
      for (const std::size_t tensor : plan_.tensors_of[static_cast<std::size_t>(rank)]) {
        const std::size_t entry = plan_.entry_of(tensor);
        plan_.zip.entries[entry].crc32 = *word++;
        const auto end = word + static_cast<std::ptrdiff_t>(num_blocks(plan_.zip.entries[entry].size));
        sums_[entry] = BlockSums(word, end);
        word = end;
      }
    }
  }

  // What comes last: without the directory the file is no zip.
  std::uint32_t finish() {
    const auto& entries = plan_.zip.entries;
    const std::string text = integrity_text({entries.begin(), entries.end() - 1}, sums_);
    write_entry(entries.size() - 1, as_bytes(text));
    file_->write_at(plan_.zip.directory_offset, as_bytes(formats::zip_directory(plan_.zip)));
    file_->sync();
    return integrity_id(text);
  }

  const std::vector<comm::ShardedTensor>& tensors_;
  comm::World& world_;
  comm::GroupPtr all_;
  FilePlan plan_;
  at::Device transport_ = at::kCPU;
  std::optional<File> file_;
  std::vector<BlockSums> sums_;  // by entry, all but integrity
  std::vector<std::byte> buffer_;
};

}  // namespace

std::uint32_t write_sharded_tensor_file(const std::filesystem::path& path,
                                        const std::vector<comm::ShardedTensor>& tensors, comm::World& world,
                                        const Scalars& scalars) {
  return as_checkpoint_error([&] { return Writer(path, tensors, scalars, world).run(); });
}

std::uint32_t write_tensor_file(const std::filesystem::path& path, const NamedTensors& tensors,
                                const Scalars& scalars) {
  std::vector<comm::ShardedTensor> whole;
  for (const auto& [name, tensor] : tensors) {
    whole.push_back(
        comm::whole_tensor(name, tensor.detach().contiguous(), 0, 0, tensor.sizes().vec(), tensor.scalar_type()));
  }
  return write_sharded_tensor_file(path, whole, *comm::World::solo(), scalars);
}

}  // namespace dfm::checkpoint
