// The restricted pickle reader, both ways of treating unknown globals.
#include <ATen/ATen.h>

#include "dfm/formats/pickle.h"
#include "dfm/formats/pickle_writer.h"
#include "dfm/formats/torch_file.h"
#include "fuzz/fuzz_target.h"

using std::string_view_literals::operator""sv;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = dfm::test::fuzz_bytes(data, size);
  for (const auto unknown : {dfm::formats::UnknownGlobals::kRefuse, dfm::formats::UnknownGlobals::kKeep}) {
    dfm::test::expect_data_errors_only([&] {
      const auto value = dfm::formats::load_pickle(bytes, "input", unknown);
      for (const auto& [name, tensor] : dfm::formats::named_tensors(value)) dfm::test::touch(tensor);
    });
  }
  return 0;
}

std::vector<std::string> fuzz_seeds() {
  dfm::formats::PickleWriter writer;
  writer.start();
  writer.empty_dict();
  writer.mark();
  writer.text("step");
  writer.integer(123456789012);
  writer.text("rate");
  writer.real(0.5);
  writer.text("shape");
  const std::vector<std::int64_t> shape = {1, 300, 70000, -1};
  writer.integer_tuple(shape);
  writer.text("size");
  writer.global("torch", "Size");
  writer.mark();
  writer.integer_tuple(shape);
  writer.tuple();
  writer.reduce();
  writer.set_items();
  writer.stop();
  std::vector<std::string> seeds = {writer.take()};
  seeds.push_back(dfm::formats::pickle_tensor(at::arange(6, at::kFloat).reshape({2, 3}).to(at::kBFloat16)));
  seeds.push_back(dfm::formats::pickle_tensor(at::ones({2, 0}, at::kBool)));
  constexpr std::string_view kHandMade[] = {
      "\x80\x04\x95\x10\0\0\0\0\0\0\0]\x94(\x8c\x01"
      "a\x94h\x01K\x05\x86\x94}\x94(h\x01NK\x07\x88ue."sv,
      "\x80\x02"
      "ccollections\nOrderedDict\nq\0)Rq\1(X\1\0\0\0aq\2K\1u}X\x09\0\0\0_metadataK\2sb."sv,
      "\x80\x03"
      "cnumpy.core.multiarray\n_reconstruct\nq\0cnumpy\nndarray\nq\1K\0\x85q\2C\1bq\3\x87q\4Rq\5(K\1K\2\x85q\6"
      "cnumpy\ndtype\nq\7X\2\0\0\0f4q\x08\x89\x88\x87q\x09Rq\x0a(K\3X\1\0\0\0<"
      "q\x0bNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0"
      "tq\x0c"
      "b\x89"
      "C\x08\0\0\x80\x3f\0\0\0\x40q\x0dtq\x0e"
      "b."sv,
      "\x80\x02"
      "c_codecs\nencode\n(X\3\0\0\0a\xc3\xbfX\6\0\0\0latin1tR."sv,
      "\x80\x02"
      "cbuiltins\nset\n]K\1a\x85R."sv};
  seeds.insert(seeds.end(), std::begin(kHandMade), std::end(kHandMade));
  return seeds;
}
