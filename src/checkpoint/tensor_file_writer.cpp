#include <ATen/ATen.h>

#include <algorithm>
#include <set>

#include "checkpoint/errors.h"
#include "checkpoint/integrity.h"
#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/hash.h"
#include "dfm/checkpoint/tensor_file.h"
#include "dfm/formats/pickle_writer.h"

namespace dfm::checkpoint {
namespace {

constexpr const char* kTop = "archive/";

std::string data_pickle(const NamedTensors& tensors, const Scalars& scalars) {
  formats::PickleWriter out;
  out.start();
  out.empty_dict();
  out.mark();
  std::set<std::string> names;
  const auto key = [&](const std::string& name) {
    if (!names.insert(name).second) throw InternalError("tensor file: got name {} twice", name);
    out.text(name);
  };
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, tensor] = tensors[i];
    key(name);
    out.tensor(tensor.scalar_type(), tensor.sizes(), std::to_string(i));
  }
  for (const auto& [name, scalar] : scalars) {
    key(name);
    if (const auto* integer = std::get_if<std::int64_t>(&scalar)) out.integer(*integer);
    if (const auto* real = std::get_if<double>(&scalar)) out.real(*real);
    if (const auto* boolean = std::get_if<bool>(&scalar)) out.boolean(*boolean);
    if (const auto* text = std::get_if<std::string>(&scalar)) out.text(*text);
  }
  out.set_items();
  out.stop();
  return out.take();
}

struct Plan {
  formats::ZipPlan zip;  // data.pkl, byteorder, version, the tensors in order, integrity
  std::string pickle;
};

Plan plan_file(const NamedTensors& tensors, const Scalars& scalars) {
  Plan plan;
  plan.pickle = data_pickle(tensors, scalars);
  std::vector<std::pair<std::string, std::uint64_t>> sizes = {{std::string(kTop) + "data.pkl", plan.pickle.size()},
                                                              {std::string(kTop) + "byteorder", 6},
                                                              {std::string(kTop) + "version", 2}};
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    sizes.emplace_back(fmt::format("{}data/{}", kTop, i), tensors[i].second.nbytes());
  }
  sizes.emplace_back(std::string(kTop) + "integrity", integrity_size(formats::plan_zip(sizes).entries));
  plan.zip = formats::plan_zip(sizes);
  return plan;
}

// Writes the data of one entry, then its header, which holds the crc32. Returns the sums of its blocks.
BlockSums write_entry(File& file, formats::ZipEntry& entry, std::span<const std::byte> data) {
  if (data.size() != entry.size)
    throw InternalError("tensor file: entry {}: got another size than planned", entry.name);
  BlockSums sums;
  for (std::uint64_t offset = 0; offset < data.size(); offset += kBlockBytes) {
    const auto block = data.subspan(offset, std::min<std::uint64_t>(kBlockBytes, data.size() - offset));
    sums.push_back(crc32c(block));
    entry.crc32 = formats::zip_crc32(block, entry.crc32);
    file.write_at(entry.data_offset + offset, block);
  }
  file.write_at(entry.header_offset, as_bytes(formats::zip_header(entry)));
  return sums;
}

void write_all(const std::filesystem::path& path, const NamedTensors& tensors, const Scalars& scalars) {
  Plan plan = plan_file(tensors, scalars);
  std::vector<formats::ZipEntry>& entries = plan.zip.entries;
  File file(path, File::Mode::kCreate);
  std::vector<BlockSums> sums;
  for (const std::string_view content :
       {std::string_view(plan.pickle), std::string_view("little"), std::string_view("3\n")}) {
    sums.push_back(write_entry(file, entries[sums.size()], as_bytes(content)));
  }
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor plain = tensor.detach().to(at::kCPU).contiguous();
    sums.push_back(write_entry(file, entries[sums.size()],
                               {static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes()}));
  }
  const std::vector<formats::ZipEntry> summed(entries.begin(), entries.end() - 1);
  write_entry(file, entries.back(), as_bytes(integrity_text(summed, sums)));
  file.write_at(plan.zip.directory_offset, as_bytes(formats::zip_directory(plan.zip)));
  file.sync();
  file.close();
}

}  // namespace

void write_tensor_file(const std::filesystem::path& path, const NamedTensors& tensors, const Scalars& scalars) {
  as_checkpoint_error([&] { write_all(path, tensors, scalars); });
}

}  // namespace dfm::checkpoint
