// The only place that names yaml-cpp. Its events are used, not its nodes: limits are applied while the document is
// read, so that deep nesting cannot exhaust the stack and aliases cannot multiply into memory.
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <sstream>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/config/value.h"

namespace dfm::config {
namespace {

constexpr std::size_t kMaxBytes = 1 << 20;
constexpr std::size_t kMaxDepth = 32;
constexpr std::size_t kMaxNodes = 100'000;
constexpr std::size_t kMaxTextBytes = 4 << 20;

Mark to_mark(const YAML::Mark& mark) { return {mark.line + 1, mark.column + 1}; }

struct Size {
  std::size_t nodes = 1;
  std::size_t text_bytes = 0;
};
Size size_of(const Value& value) {
  Size size{1, value.text.size()};
  const auto add = [&](const Size& part) {
    size.nodes += part.nodes;
    size.text_bytes += part.text_bytes;
  };
  for (const Value& item : value.items) add(size_of(item));
  for (const Value::Entry& entry : value.entries) add(size_of(entry.value));
  return size;
}

class Builder : public YAML::EventHandler {
 public:
  explicit Builder(std::string where) : where_(std::move(where)) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Value value;
    value.mark = to_mark(mark);
    add(std::move(value), anchor, Size{});
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) fail(mark, "an alias to a value that holds it", "an alias to an earlier value");
    Value value = found->second.first;
    value.mark = to_mark(mark);
    add(std::move(value), 0, found->second.second);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    Value value;
    value.mark = to_mark(mark);
    const bool is_quoted = tag == "!";
    if (is_quoted || !is_null_text(text)) {
      value.kind = Value::Kind::kScalar;
      value.text = text;
    }
    add(std::move(value), anchor, Size{1, text.size()});
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    push(mark, Value::Kind::kList, anchor);
  }
  void OnSequenceEnd() override { pop(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    push(mark, Value::Kind::kMap, anchor);
  }
  void OnMapEnd() override { pop(); }

  Value take_root() { return std::move(root_); }

 private:
  struct Frame {
    Value value;
    YAML::anchor_t anchor = 0;
    bool has_key = false;
  };

  [[noreturn]] void fail(const YAML::Mark& mark, const std::string& got, const std::string& want) const {
    const Mark at = to_mark(mark);
    throw ConfigError("{}: got {}, want {} ({}:{}:{})", where_, got, want, where_, at.line, at.column);
  }
  void push(const YAML::Mark& mark, Value::Kind kind, YAML::anchor_t anchor) {
    if (stack_.size() >= kMaxDepth) {
      fail(mark, "deeper nesting", fmt::format("at most {} levels", kMaxDepth));
    }
    Frame frame;
    frame.value.kind = kind;
    frame.value.mark = to_mark(mark);
    frame.anchor = anchor;
    stack_.push_back(std::move(frame));
  }
  void pop() {
    Frame frame = std::move(stack_.back());
    stack_.pop_back();
    // The parts were counted when they were added; the container itself is one node.
    const YAML::anchor_t anchor = frame.anchor;
    if (anchor != 0) anchors_[anchor] = {frame.value, size_of(frame.value)};
    add(std::move(frame.value), 0, Size{});
  }
  void add(Value value, YAML::anchor_t anchor, const Size& size) {
    num_nodes_ += size.nodes;
    text_bytes_ += size.text_bytes;
    if (num_nodes_ > kMaxNodes || text_bytes_ > kMaxTextBytes) {
      throw ConfigError("{}: got more than {} values, want a config file ({}:{}:{}); hint: do its aliases multiply?",
                        where_, kMaxNodes, where_, value.mark.line, value.mark.column);
    }
    if (anchor != 0) anchors_[anchor] = {value, size};
    if (stack_.empty()) {
      root_ = std::move(value);
      return;
    }
    Frame& top = stack_.back();
    if (top.value.kind == Value::Kind::kList) {
      top.value.items.push_back(std::move(value));
    } else if (top.has_key) {
      top.value.entries.back().value = std::move(value);
      top.has_key = false;
    } else {
      if (value.kind == Value::Kind::kList || value.kind == Value::Kind::kMap) {
        throw ConfigError("{}: got {} as a key, want a name ({}:{}:{})", where_, value.describe(), where_,
                          value.mark.line, value.mark.column);
      }
      top.value.entries.push_back({value.kind == Value::Kind::kNull ? "null" : value.text, value.mark, {}});
      top.has_key = true;
    }
  }

  std::string where_;
  std::vector<Frame> stack_;
  std::map<YAML::anchor_t, std::pair<Value, Size>> anchors_;
  Value root_;
  std::size_t num_nodes_ = 0;
  std::size_t text_bytes_ = 0;
};

}  // namespace

Value parse_yaml(std::string_view text, const std::string& where) {
  if (text.size() > kMaxBytes) {
    throw ConfigError("{}: got {} bytes, want at most {} for a config file", where, text.size(), kMaxBytes);
  }
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    Builder builder(where);
    parser.HandleNextDocument(builder);
    Builder second(where);
    if (parser.HandleNextDocument(second)) throw ConfigError("{}: got a second YAML document, want one", where);
    return builder.take_root();
  } catch (const YAML::Exception& error) {
    const std::string place = error.mark.is_null()
                                  ? std::string()
                                  : fmt::format(" ({}:{}:{})", where, error.mark.line + 1, error.mark.column + 1);
    throw ConfigError("{}: got a syntax error ({}), want YAML{}", where, error.msg, place);
  }
}

Value parse_argument(std::string_view text) {
  const bool is_flow = !text.empty() && (text.front() == '[' || text.front() == '{');
  const bool is_quoted =
      text.size() >= 2 && (text.front() == '"' || text.front() == '\'') && text.front() == text.back();
  if (is_flow || is_quoted) {
    Value value = parse_yaml(text, "command line");
    return value;
  }
  Value value;
  if (!is_null_text(text)) {
    value.kind = Value::Kind::kScalar;
    value.text = text;
  }
  return value;
}

}  // namespace dfm::config
