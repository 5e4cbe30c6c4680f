#include "checkpoint/file_plan.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "checkpoint/integrity.h"
#include "dfm/base/error.h"
#include "dfm/base/hash.h"
#include "dfm/formats/pickle_writer.h"

namespace dfm::checkpoint {
namespace {

constexpr const char* kTop = "archive/";

std::string data_pickle(const std::vector<comm::ShardedTensor>& tensors, const Scalars& scalars) {
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
    key(tensors[i].name);
    out.tensor(tensors[i].dtype, tensors[i].shape, std::to_string(i));
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

std::uint64_t fingerprint_of(const std::string& pickle, const std::vector<comm::ShardedTensor>& tensors) {
  std::uint64_t hash = fnv1a64(pickle);
  for (const comm::ShardedTensor& tensor : tensors) {
    for (const auto& [rank, slice] : tensor.pieces) {
      hash = fnv1a64(
          fmt::format("{} {} {} {} {} {};", rank, slice.dim, slice.begin, slice.end, slice.first, slice.last), hash);
    }
    hash = fnv1a64("\n", hash);
  }
  return hash;
}

}  // namespace

std::vector<std::vector<std::size_t>> deal_out(const std::vector<std::uint64_t>& sizes, int num_ranks) {
  std::vector<std::size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return sizes[a] > sizes[b]; });
  std::vector<std::vector<std::size_t>> lists(static_cast<std::size_t>(num_ranks));
  std::vector<std::uint64_t> loads(lists.size(), 0);
  for (const std::size_t tensor : order) {
    const auto rank = static_cast<std::size_t>(std::min_element(loads.begin(), loads.end()) - loads.begin());
    lists[rank].push_back(tensor);
    loads[rank] += sizes[tensor] + 1;  // empty ones are spread too
  }
  return lists;
}

std::uint64_t bytes_of_tensor(const std::vector<std::int64_t>& shape, at::ScalarType dtype) {
  std::uint64_t bytes = c10::elementSize(dtype);
  for (const std::int64_t size : shape) bytes *= static_cast<std::uint64_t>(size);
  return bytes;
}

std::uint64_t FilePlan::file_size() const { return zip.directory_offset + formats::zip_directory(zip).size(); }

FilePlan plan_file(const std::vector<comm::ShardedTensor>& tensors, const Scalars& scalars, int num_ranks) {
  FilePlan plan;
  plan.leading = {data_pickle(tensors, scalars), "little", "3\n"};
  std::vector<std::pair<std::string, std::uint64_t>> entries;
  for (const char* name : {"data.pkl", "byteorder", "version"})
    entries.emplace_back(std::string(kTop) + name, plan.leading[entries.size()].size());
  std::vector<std::uint64_t> sizes;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    sizes.push_back(bytes_of_tensor(tensors[i].shape, tensors[i].dtype));
    entries.emplace_back(fmt::format("{}data/{}", kTop, i), sizes.back());
  }
  entries.emplace_back(std::string(kTop) + "integrity", integrity_size(formats::plan_zip(entries).entries));
  plan.zip = formats::plan_zip(entries);
  plan.tensors_of = deal_out(sizes, num_ranks);
  plan.fingerprint = fingerprint_of(plan.leading[0], tensors);
  return plan;
}

}  // namespace dfm::checkpoint
