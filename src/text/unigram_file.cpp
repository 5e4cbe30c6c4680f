#include "text/unigram_file.h"

#include <array>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "dfm/base/error.h"
#include "dfm/base/file.h"

namespace dfm::text {
namespace {

using nlohmann::json;

constexpr int kNumExtraIds = 100;
constexpr std::array<const char*, 3> kSpecialPieces = {"<pad>", "</s>", "<unk>"};  // ids 0, 1, 2

// Protocol buffers, as much as a SentencePiece model needs: fields that are numbers or run of bytes.
class ProtoReader {
 public:
  ProtoReader(std::string_view message, const std::string& name) : rest_(message), name_(name) {}

  // Moves to the next field; false at the end.
  bool next() {
    if (rest_.empty()) return false;
    const std::uint64_t key = varint();
    number = static_cast<std::uint32_t>(key >> 3);
    bytes = {};
    value = 0;
    switch (key & 7) {
      case 0:
        value = varint();
        break;
      case 1:
        bytes = take(8);
        break;
      case 2:
        bytes = take(varint());
        break;
      case 5:
        bytes = take(4);
        break;
      default:
        damaged();
    }
    return true;
  }
  std::uint32_t number = 0;
  std::uint64_t value = 0;
  std::string_view bytes;

 private:
  [[noreturn]] void damaged() const {
    throw DataError("{}: got bytes that are not a SentencePiece model, want T5's spiece.model", name_);
  }
  std::uint64_t varint() {
    std::uint64_t result = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      result |= std::uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return result;
    }
    damaged();
  }
  std::string_view take(std::uint64_t size) {
    if (size > rest_.size()) damaged();
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }
  std::string_view rest_;
  const std::string& name_;
};

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}
void put_number(std::string& out, std::uint32_t field, std::uint64_t value) {
  put_varint(out, field << 3);
  put_varint(out, value);
}
void put_bytes(std::string& out, std::uint32_t field, std::string_view bytes) {
  put_varint(out, field << 3 | 2);
  put_varint(out, bytes.size());
  out += bytes;
}
void put_float(std::string& out, std::uint32_t field, float value) {
  put_varint(out, field << 3 | 5);
  std::array<char, 4> bytes;  // little endian, as every machine that this runs on
  std::memcpy(bytes.data(), &value, 4);
  out.append(bytes.data(), 4);
}

void check_special_pieces(const UnigramFile& file, const std::string& name) {
  for (std::size_t i = 0; i < kSpecialPieces.size(); ++i) {
    if (i < file.pieces.size() && file.pieces[i].first == kSpecialPieces[i]) continue;
    const std::string got = i < file.pieces.size() ? file.pieces[i].first : "none";
    throw DataError("{}: got \"{}\" as piece {}, want \"{}\" as T5 has", name, got, i, kSpecialPieces[i]);
  }
}

UnigramFile read_spiece(std::string_view bytes, const std::string& name) {
  UnigramFile file;
  for (ProtoReader model(bytes, name); model.next();) {
    if (model.number == 1) {
      std::string piece;
      float score = 0;
      for (ProtoReader field(model.bytes, name); field.next();) {
        if (field.number == 1) piece = field.bytes;
        if (field.number == 2 && field.bytes.size() == 4) std::memcpy(&score, field.bytes.data(), 4);
      }
      file.pieces.emplace_back(std::move(piece), score);
    } else if (model.number == 2) {
      for (ProtoReader field(model.bytes, name); field.next();) {
        if (field.number == 3 && field.bytes.empty() && field.value != 1) {
          throw DataError("{}: got a SentencePiece model of type {}, want 1 (Unigram) as T5 has", name, field.value);
        }
      }
    } else if (model.number == 3) {
      for (ProtoReader field(model.bytes, name); field.next();) {
        if (field.number == 2) file.character_map = field.bytes;
      }
    }
  }
  check_special_pieces(file, name);
  for (std::size_t i = 0; i < kSpecialPieces.size(); ++i) {
    file.special_tokens.push_back({kSpecialPieces[i], static_cast<std::int32_t>(i)});
  }
  for (int i = kNumExtraIds - 1; i >= 0; --i) {
    const std::string content = fmt::format("<extra_id_{}>", i);
    file.special_tokens.push_back({content, static_cast<std::int32_t>(file.pieces.size())});
    file.pieces.emplace_back(content, 0.0F);
  }
  return file;
}

std::optional<std::string> decode_base64(std::string_view text) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string result;
  std::uint32_t bits = 0;
  unsigned num_bits = 0;
  while (text.ends_with('=')) text.remove_suffix(1);
  for (const char c : text) {
    const std::size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    num_bits += 6;
    if (num_bits < 8) continue;
    num_bits -= 8;
    result.push_back(static_cast<char>(bits >> num_bits & 0xFFU));
  }
  return result;
}

// tokenizer.json. Every part that changes ids is either known here or refused by name.
class JsonReader {
 public:
  JsonReader(const json& root, std::string name) : root_(root), name_(std::move(name)) {}

  UnigramFile read() {
    const json& model = part(root_, "model");
    if (text(model, "type", "Unigram") != "Unigram") unknown("model", model);
    if (flag(model, "byte_fallback")) unknown("model with byte_fallback", model.at("byte_fallback"));
    for (const json& entry : part(model, "vocab")) {
      if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number()) {
        unknown("entry of the vocabulary", entry);
      }
      file_.pieces.emplace_back(entry[0].get<std::string>(), entry[1].get<float>());
    }
    check_special_pieces(file_, name_);
    file_.trims_right = file_.merges_spaces = false;
    normalizer(child(root_, "normalizer"), 0);
    pre_tokenizer(child(root_, "pre_tokenizer"), 0);
    added_tokens();
    return std::move(file_);
  }

 private:
  static constexpr int kDeepest = 4;  // nested sequences

  [[noreturn]] void unknown(const std::string& what, const json& got) const {
    throw DataError("{}: got the {} {}, want what T5 has; hint: use the folder's spiece.model", name_, what,
                    got.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 80));
  }
  const json& part(const json& parent, const char* key) const {
    const json& value = child(parent, key);
    if (value.is_null()) throw DataError("{}: got no `{}`, want a tokenizer", name_, key);
    return value;
  }
  static std::string text(const json& parent, const char* key, const char* otherwise = "") {
    const json& value = child(parent, key);
    return value.is_string() ? value.get<std::string>() : otherwise;
  }
  static bool flag(const json& parent, const char* key, bool otherwise = false) {
    const json& value = child(parent, key);
    return value.is_boolean() ? value.get<bool>() : otherwise;
  }
  static const json& child(const json& parent, const char* key) {  // null where there is none
    static const json kNone;
    const auto found = parent.is_object() ? parent.find(key) : parent.end();
    return parent.is_object() && found != parent.end() ? *found : kNone;
  }

  void normalizer(const json& step, int depth) {
    if (step.is_null()) return;
    const std::string type = text(step, "type");
    if (type == "Sequence" && depth < kDeepest) {
      for (const json& inner : part(step, "normalizers")) normalizer(inner, depth + 1);
    } else if (type == "Precompiled" && !file_.trims_right && !file_.merges_spaces) {
      const auto bytes = decode_base64(text(step, "precompiled_charsmap"));
      if (!bytes) unknown("character map, which is not base64, of", type);
      file_.character_map = *bytes;
    } else if (type == "Strip" && !flag(step, "strip_left", true) && !file_.merges_spaces) {
      file_.trims_right = flag(step, "strip_right", true);
    } else if (type == "Replace" && child(step, "pattern") == json{{"Regex", " {2,}"}} &&
               (text(step, "content") == "\u2581" || text(step, "content") == " ")) {
      file_.merges_spaces = true;
    } else {
      unknown("normalizer", step);
    }
  }

  void pre_tokenizer(const json& step, int depth) {
    const std::string type = text(step, "type");
    if (type == "Sequence" && depth < kDeepest) {
      for (const json& inner : part(step, "pretokenizers")) pre_tokenizer(inner, depth + 1);
    } else if (type == "WhitespaceSplit") {
      file_.splits_at_white_space = true;
    } else if (type == "Metaspace" && flag(step, "split", true) && text(step, "replacement", "\u2581") == "\u2581") {
      const std::string scheme =
          text(step, "prepend_scheme", flag(step, "add_prefix_space", true) ? "always" : "never");
      using Prefix = UnigramFile::Prefix;
      file_.prefix = scheme == "always" ? Prefix::kAlways : scheme == "first" ? Prefix::kFirst : Prefix::kNever;
    } else {
      unknown("pre_tokenizer", step);
    }
  }

  void added_tokens() {
    for (const json& token : child(root_, "added_tokens")) {
      const auto id = token.is_object() ? token.find("id") : token.end();
      if (!token.is_object() || id == token.end() || !id->is_number_integer() || *id < 0 || *id > (1 << 24) ||
          text(token, "content").empty() || flag(token, "single_word")) {
        unknown("added token", token);
      }
      file_.special_tokens.push_back(
          {text(token, "content"), id->get<std::int32_t>(), flag(token, "lstrip"), flag(token, "rstrip")});
    }
  }

  const json& root_;
  std::string name_;
  UnigramFile file_;
};

}  // namespace

UnigramFile read_unigram_file(const std::filesystem::path& path) {
  const std::string bytes = read_text_file(path);
  const std::size_t first = bytes.find_first_not_of(" \t\r\n");
  UnigramFile file;
  // A SentencePiece model begins with byte 10, a line feed, too: what follows decides.
  if (first != std::string::npos && bytes[first] == '{' && json::accept(bytes)) {
    const json root = json::parse(bytes);
    file = JsonReader(root, path.string()).read();
  } else {
    file = read_spiece(bytes, path.string());
  }
  for (const auto& [piece, score] : file.pieces) {
    if (!std::isfinite(score)) throw DataError("{}: got the score {} for a piece, want a number", path.string(), score);
  }
  return file;
}

std::string sentencepiece_model(const UnigramFile& file) {
  enum : std::uint64_t { kNormal = 1, kUnknown = 2 };
  std::string model;
  const auto put_piece = [&](std::string_view piece, float score, std::uint64_t type) {
    std::string bytes;
    put_bytes(bytes, 1, piece);
    put_float(bytes, 2, score);
    put_number(bytes, 3, type);
    put_bytes(model, 1, bytes);
  };
  for (std::size_t i = 0; i < file.pieces.size(); ++i) {
    // SentencePiece never finds an unknown piece in text, Hugging Face does: two pieces.
    if (i == 2) {
      put_piece("\x01unknown", 0, kUnknown);
    } else {
      put_piece(file.pieces[i].first, file.pieces[i].second, kNormal);
    }
  }
  put_piece("<unk>", 0, kNormal);
  std::string trainer, normalizer;
  put_number(trainer, 3, 1);              // model_type: Unigram
  put_number(trainer, 40, 2);             // unk_id
  put_bytes(trainer, 45, "\x01unknown");  // unk_piece
  put_bytes(model, 2, trainer);
  put_bytes(normalizer, 1, "identity");
  put_number(normalizer, 3, 0);  // add_dummy_prefix
  put_number(normalizer, 4, 0);  // remove_extra_whitespaces
  put_number(normalizer, 5, 1);  // escape_whitespaces
  put_bytes(model, 3, normalizer);
  return model;
}

}  // namespace dfm::text
