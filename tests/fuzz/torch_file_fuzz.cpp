// Files of torch.save, zip and legacy, and the pickle inside the zip by itself: there a checksum would stop mutations.
#include <ATen/ATen.h>

#include <cstring>

#include "dfm/base/file.h"
#include "dfm/formats/pickle_writer.h"
#include "dfm/formats/torch_file.h"
#include "dfm/formats/torch_zip.h"
#include "fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = dfm::test::fuzz_bytes(data, size);
  const dfm::formats::LoadStorage load_storage = [](const dfm::formats::StorageRequest& request) {
    constexpr std::int64_t kMaxElements = 64;
    if (request.numel > kMaxElements) throw dfm::DataError("storage too large");
    return at::zeros({request.numel}, at::TensorOptions().dtype(request.dtype)).storage();
  };
  dfm::test::expect_data_errors_only([&] {
    const auto value = dfm::formats::load_data_pickle(bytes, "input", load_storage);
    for (const auto& [name, tensor] : dfm::formats::named_tensors(value)) dfm::test::touch(tensor);
  });
  return dfm::test::expect_data_errors_only([&] {
    const auto value = dfm::formats::load_torch_bytes(bytes, "input", dfm::formats::UnknownGlobals::kKeep);
    for (const auto& [name, tensor] : dfm::formats::named_tensors(value)) dfm::test::touch(tensor);
  });
}

std::vector<std::string> fuzz_seeds() {
  const at::Tensor tensor = at::arange(6, at::kFloat).reshape({2, 3}).to(at::kBFloat16);
  std::vector<std::string> seeds = {dfm::formats::torch_save_tensor(tensor),
                                    dfm::formats::torch_save_tensor(at::ones({3}, at::kBool)),
                                    dfm::formats::torch_save_tensor(at::zeros({2}, at::kUInt16))};
  // A dict of two tensors: its pickle, and the zip around it.
  dfm::formats::PickleWriter pickle;
  pickle.start();
  pickle.empty_dict();
  pickle.mark();
  const std::vector<std::int64_t> shape = {2, 3};
  pickle.text("a");
  pickle.tensor(at::kFloat, shape, "0");
  pickle.text("b");
  pickle.tensor(at::kLong, shape, "1");
  pickle.set_items();
  pickle.stop();
  const std::string data_pickle = pickle.take();
  seeds.push_back(data_pickle);
  const std::vector<std::pair<std::string, std::string>> contents = {
      {"x/data.pkl", data_pickle}, {"x/data/0", std::string(24, '\1')}, {"x/data/1", std::string(48, '\2')}};
  std::vector<std::pair<std::string, std::uint64_t>> sizes;
  for (const auto& [name, content] : contents) sizes.emplace_back(name, content.size());
  dfm::formats::ZipPlan plan = dfm::formats::plan_zip(sizes);
  std::string zip;
  for (std::size_t i = 0; i < contents.size(); ++i) {
    plan.entries[i].crc32 = dfm::formats::zip_crc32(dfm::as_bytes(contents[i].second));
    zip += dfm::formats::zip_header(plan.entries[i]) + contents[i].second;
  }
  seeds.push_back(zip + dfm::formats::zip_directory(plan));
  // The blob inside a pickled tensor is a whole legacy file.
  const std::string outer = dfm::formats::pickle_tensor(tensor);
  const std::size_t first = outer.find("\x80\x02\x8a\x0a");
  std::uint32_t blob_size = 0;
  std::memcpy(&blob_size, outer.data() + first - sizeof blob_size, sizeof blob_size);
  seeds.push_back(outer.substr(first, blob_size));
  return seeds;
}
