#include "formats/unpickler.h"

#include <algorithm>
#include <cstring>

#include "dfm/base/file.h"
#include "formats/torch_types.h"

namespace dfm::formats {
namespace {

constexpr std::size_t kMaxValues = std::size_t{1} << 24;  // pushes in one pickle

}  // namespace

std::span<const std::byte> Unpickler::take(std::uint64_t count) {
  if (count > bytes_.size() - position_) {
    fail("got {} bytes, want {} more; hint: the file is cut short or damaged", bytes_.size(),
         count - (bytes_.size() - position_));
  }
  const auto result = bytes_.subspan(position_, static_cast<std::size_t>(count));
  position_ += static_cast<std::size_t>(count);
  return result;
}

template <typename T>
T Unpickler::number() {
  T value{};
  std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
  return value;
}

std::string_view Unpickler::line() {
  const std::string_view rest = as_text(bytes_.subspan(position_));
  const std::size_t end = rest.find('\n');
  if (end == std::string_view::npos) fail("got a name without an end; hint: the file is cut short or damaged");
  position_ += end + 1;
  return rest.substr(0, end);
}

std::string Unpickler::text(std::uint64_t count) { return std::string(as_text(take(count))); }

PickleValue Unpickler::pop() {
  PickleValue value = std::move(top());
  stack_.pop_back();
  return value;
}

PickleValue& Unpickler::top() {
  if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) fail("got an empty stack, want a value on it");
  return stack_.back();
}

PickleList Unpickler::pop_to_mark() {
  if (marks_.empty()) fail("got no mark on the stack, want one");
  const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
  marks_.pop_back();
  PickleList items(std::make_move_iterator(first), std::make_move_iterator(stack_.end()));
  stack_.erase(first, stack_.end());
  return items;
}

PickleValue Unpickler::load() {
  if (take(1)[0] != std::byte{0x80}) fail("got no protocol number, want a pickle of protocol 2 to 5");
  const auto protocol = number<std::uint8_t>();
  if (protocol < 2 || protocol > 5) fail("got protocol {}, want 2 to 5", protocol);
  std::size_t pushes = 0;
  while (step()) {
    if (++pushes > kMaxValues) fail("got more than {} operations", kMaxValues);
  }
  PickleValue result = pop();
  if (!stack_.empty() || !marks_.empty()) fail("got {} values at the end, want one", stack_.size() + 1);
  finish(result);
  return result;
}

bool Unpickler::step() {
  opcode_position_ = position_;
  const auto code = number<std::uint8_t>();
  if (code == '.') return false;
  if (step_scalar(code) || step_container(code) || step_memo(code) || step_object(code)) return true;
  fail("got opcode 0x{:02x}, want one of protocols 2 to 5", code);
}

bool Unpickler::step_scalar(unsigned char code) {
  const auto push_bytes = [this](std::uint64_t count) {
    push({PickleBytes{std::make_shared<const std::string>(text(count))}});
  };
  switch (code) {
    case 'N':
      push({});
      return true;
    case 0x88:
      push({true});
      return true;
    case 0x89:
      push({false});
      return true;
    case 'K':
      push({std::int64_t{number<std::uint8_t>()}});
      return true;
    case 'M':
      push({std::int64_t{number<std::uint16_t>()}});
      return true;
    case 'J':
      push({std::int64_t{number<std::int32_t>()}});
      return true;
    case 0x8a:
      integer_of_bytes(take(number<std::uint8_t>()));
      return true;
    case 0x8b:
      integer_of_bytes(take(number<std::uint32_t>()));
      return true;
    case 'G': {
      const std::uint64_t bits = __builtin_bswap64(number<std::uint64_t>());
      double value = 0;
      std::memcpy(&value, &bits, sizeof value);
      push({value});
      return true;
    }
    case 'X':
      push({text(number<std::uint32_t>())});
      return true;
    case 0x8c:
      push({text(number<std::uint8_t>())});
      return true;
    case 0x8d:
      push({text(number<std::uint64_t>())});
      return true;
    case 'U':
      push({text(number<std::uint8_t>())});
      return true;
    case 'T':
      push({text(number<std::uint32_t>())});
      return true;
    case 'B':
      push_bytes(number<std::uint32_t>());
      return true;
    case 'C':
      push_bytes(number<std::uint8_t>());
      return true;
    case 0x8e:
    case 0x96:
      push_bytes(number<std::uint64_t>());
      return true;
    default:
      return false;
  }
}

void Unpickler::integer_of_bytes(std::span<const std::byte> bytes) {
  if (bytes.size() > 8) return push({PickleLong{std::string(as_text(bytes))}});
  const bool negative = !bytes.empty() && (static_cast<unsigned>(bytes.back()) & 0x80U) != 0;
  std::uint64_t value = negative ? ~std::uint64_t{0} : 0;
  if (!bytes.empty()) std::memcpy(&value, bytes.data(), bytes.size());
  push({static_cast<std::int64_t>(value)});
}

bool Unpickler::step_container(unsigned char code) {
  const auto tuple_of_top = [this](std::size_t count) {
    PickleList items(count);
    for (std::size_t i = count; i > 0; --i) items[i - 1] = pop();
    push(new_tuple(std::move(items)));
  };
  switch (code) {
    case '(':
      marks_.push_back(stack_.size());
      return true;
    case ')':
      push(new_tuple({}));
      return true;
    case 0x85:
      tuple_of_top(1);
      return true;
    case 0x86:
      tuple_of_top(2);
      return true;
    case 0x87:
      tuple_of_top(3);
      return true;
    case 't':
      push(new_tuple(pop_to_mark()));
      return true;
    case ']':
    case 0x8f:
      push(new_list({}));
      return true;
    case 'l':
    case 0x91:
      push(new_list(pop_to_mark()));
      return true;
    case '}':
      push(new_dict());
      return true;
    case 'd': {
      PickleList items = pop_to_mark();
      push(new_dict());
      set_items(std::move(items));
      return true;
    }
    case 'a': {
      PickleList items(1);
      items[0] = pop();
      append(std::move(items));
      return true;
    }
    case 'e':
    case 0x90:
      append(pop_to_mark());
      return true;
    case 's': {
      PickleList items(2);
      items[1] = pop();
      items[0] = pop();
      set_items(std::move(items));
      return true;
    }
    case 'u':
      set_items(pop_to_mark());
      return true;
    default:
      return false;
  }
}

void Unpickler::append(PickleList items) {
  auto* list = std::get_if<std::shared_ptr<PickleList>>(&top().value);
  if (list == nullptr) fail("got items for something that is not a list");
  std::move(items.begin(), items.end(), std::back_inserter(**list));
}

void Unpickler::set_items(PickleList items) {
  auto* dict = std::get_if<std::shared_ptr<PickleDict>>(&top().value);
  if (dict == nullptr) fail("got key and value for something that is not a dict");
  if (items.size() % 2 != 0) fail("got a dict key without a value");
  for (std::size_t i = 0; i < items.size(); i += 2) {
    (*dict)->emplace_back(std::move(items[i]), std::move(items[i + 1]));
  }
}

bool Unpickler::step_memo(unsigned char code) {
  switch (code) {
    case 'q':
      put(number<std::uint8_t>());
      return true;
    case 'r':
      put(number<std::uint32_t>());
      return true;
    case 0x94:
      put(memo_.size());
      return true;
    case 'h':
      get(number<std::uint8_t>());
      return true;
    case 'j':
      get(number<std::uint32_t>());
      return true;
    case '2': {
      put(~std::uint64_t{0});
      get(~std::uint64_t{0});
      memo_.erase(~std::uint64_t{0});
      return true;
    }
    case '0':
      if (!marks_.empty() && marks_.back() == stack_.size()) {
        marks_.pop_back();
      } else {
        pop();
      }
      return true;
    case '1':
      pop_to_mark();
      return true;
    default:
      return false;
  }
}

void Unpickler::put(std::uint64_t index) { memo_[index] = top(); }

void Unpickler::get(std::uint64_t index) {
  const auto found = memo_.find(index);
  if (found == memo_.end()) fail("got memo entry {}, want one that was stored before", index);
  // Texts are copied: a small file must not grow to fill the memory.
  if (const std::string* content = found->second.text()) copied_bytes_ += content->size();
  if (copied_bytes_ > 64 * bytes_.size() + (std::size_t{1} << 20)) fail("got too many copies of long texts");
  push(found->second);
}

bool Unpickler::step_object(unsigned char code) {
  switch (code) {
    case 0x80:
      number<std::uint8_t>();
      return true;
    case 0x95:
      number<std::uint64_t>();
      return true;  // a frame is only a hint how to read
    case 0x98:
      return true;  // read-only buffer
    case 'c': {
      const std::string module(line());
      push_global(module, std::string(line()));
      return true;
    }
    case 0x93: {
      const PickleValue name = pop();
      const PickleValue module = pop();
      if (name.text() == nullptr || module.text() == nullptr) fail("got a global whose name is no text");
      push_global(*module.text(), *name.text());
      return true;
    }
    case 'R':
    case 0x81: {
      PickleValue args = pop();
      const PickleValue function = pop();
      push(call(function, std::move(args)));
      return true;
    }
    case 0x92: {
      pop();  // keyword arguments: no known class has any
      PickleValue args = pop();
      const PickleValue function = pop();
      push(call(function, std::move(args)));
      return true;
    }
    case 'b': {
      PickleValue state = pop();
      build(top(), std::move(state));
      return true;
    }
    case 'Q':
      push(persistent(pop()));
      return true;
    default:
      return false;
  }
}

PickleValue Unpickler::new_tuple(PickleList items) {
  auto node = std::make_shared<PickleTuple>(PickleTuple{std::move(items)});
  containers_.emplace_back(node);
  return {std::move(node)};
}
PickleValue Unpickler::new_list(PickleList items) {
  auto node = std::make_shared<PickleList>(std::move(items));
  containers_.emplace_back(node);
  return {std::move(node)};
}
PickleValue Unpickler::new_dict() {
  auto node = std::make_shared<PickleDict>();
  containers_.emplace_back(node);
  return {std::move(node)};
}
PickleValue Unpickler::new_object(PickleGlobal global, PickleValue args) {
  auto node = std::make_shared<PickleObject>(PickleObject{std::move(global), std::move(args), {}, {}});
  containers_.emplace_back(node);
  return {std::move(node)};
}

}  // namespace dfm::formats
