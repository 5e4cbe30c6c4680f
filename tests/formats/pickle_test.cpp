#include "dfm/formats/pickle.h"

#include <gtest/gtest.h>

#include "dfm/base/file.h"
#include "dfm/formats/pickle_writer.h"
#include "support/errors.h"

namespace dfm::formats {
namespace {

using std::string_literals::operator""s;
using std::string_view_literals::operator""sv;

// Joined piece by piece: g++ 12 warns wrongly about long chains of +.
std::string join(std::initializer_list<std::string_view> pieces) {
  std::string result;
  for (const std::string_view piece : pieces) result += piece;
  return result;
}

PickleValue load(const std::string& opcodes, UnknownGlobals unknown = UnknownGlobals::kRefuse) {
  return load_pickle(as_bytes(opcodes), "p", unknown);
}
// Opcodes between PROTO 2 and STOP.
PickleValue load_body(const std::string& body, UnknownGlobals unknown = UnknownGlobals::kRefuse) {
  return load(join({"\x80\x02"sv, body, "."}), unknown);
}

TEST(Pickle, WriterAndReaderAgreeOnScalars) {
  PickleWriter out;
  out.start();
  out.empty_dict();
  out.mark();
  const std::vector<std::int64_t> integers = {0,          255,          256,       65535,    65536, -1, -2147483648LL,
                                              2147483647, 2147483648LL, INT64_MIN, INT64_MAX};
  for (std::size_t i = 0; i < integers.size(); ++i) {
    out.text(std::to_string(i));
    out.integer(integers[i]);
  }
  out.text("real");
  out.real(-1.0 / 3);
  out.text("text");
  out.text("\xc3\xa9");
  out.text("yes");
  out.boolean(true);
  out.text("none");
  out.none();
  out.set_items();
  out.stop();
  const PickleValue value = load(out.take());
  for (std::size_t i = 0; i < integers.size(); ++i) {
    const PickleValue* item = value.find(std::to_string(i));
    ASSERT_TRUE(item != nullptr && item->integer() != nullptr) << integers[i];
    EXPECT_EQ(*item->integer(), integers[i]);
  }
  EXPECT_EQ(*value.find("real")->real(), -1.0 / 3);
  EXPECT_EQ(*value.find("text")->text(), "\xc3\xa9");
  EXPECT_TRUE(*value.find("yes")->boolean());
  EXPECT_TRUE(value.find("none")->is_none());
  EXPECT_EQ(value.find("other"), nullptr);
}

TEST(Pickle, LongIntegersKeepTheirBytes) {
  EXPECT_EQ(*load_body("\x8a\x00"s).integer(), 0);
  EXPECT_EQ(*load_body("\x8a\x01\xff"s).integer(), -1);
  EXPECT_EQ(*load_body("\x8a\x02\x00\x80"s).integer(), -32768);
  const PickleValue huge = load_body("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"s);
  ASSERT_TRUE(std::holds_alternative<PickleLong>(huge.value));
  EXPECT_EQ(std::get<PickleLong>(huge.value).bytes.size(), 10U);
}

TEST(Pickle, ForbiddenGlobalsAreRefusedByName) {
  EXPECT_DFM_ERROR(ExitCode::kData, "posix.system", load_body("cposix\nsystem\n(X\x02\x00\x00\x00idtR"s));
  EXPECT_DFM_ERROR(ExitCode::kData, "builtins.eval",
                   load("\x80\x04\x8c\x08"
                        "builtins\x8c\x04"
                        "eval\x93\x8c\x01"
                        "1\x85R."s));
  EXPECT_DFM_ERROR(ExitCode::kData, "torch.load", load_body("ctorch\nload\n"));
  EXPECT_DFM_ERROR(ExitCode::kData, "os.a\\x0ab",
                   load("\x80\x04\x8c\x02os\x8c\x03"
                        "a\nb\x93."s));
}

TEST(Pickle, UnknownGlobalsCanBeKeptAsOpaqueNodes) {
  const PickleValue value = load_body(
      "cposix\nsystem\n(X\x02\x00\x00\x00idtR}X\x01\x00\x00\x00"
      "aK\x01sb"s,
      UnknownGlobals::kKeep);
  const PickleObject* object = value.object();
  ASSERT_NE(object, nullptr);
  EXPECT_EQ(object->global.module + "." + object->global.name, "posix.system");
  EXPECT_EQ(*object->args.tuple()->at(0).text(), "id");
  EXPECT_EQ(*object->state.find("a")->integer(), 1);
}

TEST(Pickle, OrderedDictIsADictAndItsAttributesAreDropped) {
  const PickleValue value = load_body(
      "ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00"
      "aK\x01u}X\x09\x00\x00\x00_metadataK\x02sb"s);
  ASSERT_NE(value.dict(), nullptr);
  EXPECT_EQ(value.dict()->size(), 1U);
  EXPECT_EQ(*value.find("a")->integer(), 1);
}

TEST(Pickle, CyclesDepthAndExpansionAreRefused) {
  EXPECT_DFM_ERROR(ExitCode::kData, "contains itself",
                   load_body("]q\x00h\x00"
                             "a"s));
  EXPECT_DFM_ERROR(ExitCode::kData, "contains itself",
                   load_body("]q\x00(h\x00t"
                             "a"s));
  EXPECT_DFM_ERROR(ExitCode::kData, "deep", load_body(std::string(200000, ']') + std::string(199999, 'a')));
  std::string doubling = "]q\x00"s;
  for (int i = 0; i < 90; ++i)
    doubling +=
        "0](h\x00h\x00"
        "eq\x00"s;  // each holds the one before twice
  EXPECT_DFM_ERROR(ExitCode::kData, "values", load_body(doubling));
}

TEST(Pickle, SmallInputCannotGrowLargeTexts) {
  std::string body = join({"(X\x00\x00\x10\x00"sv, std::string(1 << 20, 'x'), "q\x00"sv});
  for (int i = 0; i < 100000; ++i) body += "h\x00"s;
  EXPECT_DFM_ERROR(ExitCode::kData, "copies of long texts", load_body(body + "t"));
}

TEST(Pickle, DamageIsADataError) {
  EXPECT_DFM_ERROR(ExitCode::kData, "p: got", load(""));
  EXPECT_DFM_ERROR(ExitCode::kData, "protocol", load("N."));
  EXPECT_DFM_ERROR(ExitCode::kData, "protocol 9", load("\x80\x09N."s));
  EXPECT_DFM_ERROR(ExitCode::kData, "cut short", load("\x80\x02N"s));
  EXPECT_DFM_ERROR(ExitCode::kData, "after the end", load("\x80\x02N.N"s));
  EXPECT_DFM_ERROR(ExitCode::kData, "empty stack", load_body("a"));
  EXPECT_DFM_ERROR(ExitCode::kData, "no mark", load_body("t"));
  EXPECT_DFM_ERROR(ExitCode::kData, "empty stack", load_body("N(\x85"));
  EXPECT_DFM_ERROR(ExitCode::kData, "memo", load_body("h\x07"));
  EXPECT_DFM_ERROR(ExitCode::kData, "opcode 0xfe", load_body("\xfe"));
  EXPECT_DFM_ERROR(ExitCode::kData, "without a value", load_body("}(Nu"));
  EXPECT_DFM_ERROR(ExitCode::kData, "twice",
                   load_body("}(X\x01\x00\x00\x00"
                             "aNX\x01\x00\x00\x00"
                             "aNu"s));
  EXPECT_DFM_ERROR(ExitCode::kData, "cut short", load_body("\x8d\xff\xff\xff\xff\xff\xff\xff\xff"s));
  EXPECT_DFM_ERROR(ExitCode::kData, "persistent id", load_body("NQ"));
  EXPECT_DFM_ERROR(ExitCode::kData, "2 values at the end", load_body("NN"));
}

TEST(Pickle, NumpyDataMustMatchItsShape) {
  const std::string dtype = join({"cnumpy\ndtype\n(X\x02\x00\x00\x00"sv, "f4\x89\x88tR(K\x03X\x01\x00\x00\x00<NNN"sv,
                                  "J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"sv});
  const std::string array =
      join({"\x80\x03"sv, "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01"sv,
            "btR(K\x01(K\x02t"sv, dtype, "\x89"sv});
  const std::string good = join({array, "C\x08"sv, "\x00\x00\x80\x3f\x00\x00\x00\x40"sv, "tb."sv});
  const PickleValue value = load(good);
  ASSERT_NE(value.tensor(), nullptr);
  EXPECT_TRUE(value.tensor()->equal(at::tensor({1.0F, 2.0F})));
  const std::string bad = join({array, "C\x04"sv, "\x00\x00\x80\x3f"sv, "tb."sv});
  EXPECT_DFM_ERROR(ExitCode::kData, "numpy data", load(bad));
  std::string big_endian = good;
  big_endian[big_endian.find('<')] = '>';
  EXPECT_DFM_ERROR(ExitCode::kData, "big-endian", load(big_endian));
}

}  // namespace
}  // namespace dfm::formats
