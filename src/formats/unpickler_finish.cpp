// The end of a pickle: what it built is checked, and what is not part of the result taken apart, without recursion.
#include <algorithm>
#include <type_traits>
#include <unordered_set>

#include "formats/torch_types.h"
#include "formats/unpickler.h"

namespace dfm::formats {
namespace {

constexpr std::uint64_t kMaxExpanded = std::uint64_t{1} << 24;  // values, shared ones counted as often as they are met
constexpr int kMaxDepth = 100;

template <typename F>
void for_each_child(PickleTuple& node, F&& visit) {
  for (PickleValue& item : node.items) visit(item);
}
template <typename F>
void for_each_child(PickleList& node, F&& visit) {
  for (PickleValue& item : node) visit(item);
}
template <typename F>
void for_each_child(PickleDict& node, F&& visit) {
  for (auto& [key, item] : node) {
    visit(key);
    visit(item);
  }
}
template <typename F>
void for_each_child(PickleObject& node, F&& visit) {
  visit(node.args);
  visit(node.state);
}

void clear(PickleTuple& node) { node.items.clear(); }
void clear(PickleList& node) { node.clear(); }
void clear(PickleDict& node) { node.clear(); }
void clear(PickleObject& node) { node.args = node.state = node.resolved = {}; }

const void* container_address(const PickleValue& value) {
  return std::visit(
      [](const auto& content) -> const void* {
        using T = std::decay_t<decltype(content)>;
        if constexpr (std::is_same_v<T, std::shared_ptr<PickleTuple>> ||
                      std::is_same_v<T, std::shared_ptr<PickleList>> ||
                      std::is_same_v<T, std::shared_ptr<PickleDict>> ||
                      std::is_same_v<T, std::shared_ptr<PickleObject>>) {
          return content.get();
        } else {
          return nullptr;
        }
      },
      value.value);
}

// Objects that BUILD has completed stand for what they became.
void replace_resolved(PickleValue& value) {
  if (const PickleObject* object = value.object(); object != nullptr && !object->resolved.is_none()) {
    PickleValue resolved = object->resolved;
    value = std::move(resolved);
  }
}

}  // namespace

Unpickler::~Unpickler() {
  // Content that did not become the result may be cyclic or very deep: taken apart one container at a time.
  stack_.clear();
  memo_.clear();
  if (keep_containers_) return;
  for (const Container& container : containers_) {
    std::visit([](const auto& pointer) { clear(*pointer); }, container);
  }
}

// Walks what the result reaches, without recursion: no cycles, no depth or size that would hurt a reader; then drops
// the rest.
void Unpickler::finish(PickleValue& result) {
  struct Node {
    std::uint64_t expanded = 0;
    int height = 0;
    enum { kNew, kOpen, kDone } state = kNew;
  };
  std::unordered_map<const void*, std::size_t> index_of;
  for (std::size_t i = 0; i < containers_.size(); ++i) {
    index_of[std::visit([](const auto& pointer) -> const void* { return pointer.get(); }, containers_[i])] = i;
  }
  std::vector<Node> nodes(containers_.size());
  std::vector<std::size_t> pending;
  const auto visit_root = [&](PickleValue& value) {
    replace_resolved(value);
    if (const void* address = container_address(value)) pending.push_back(index_of.at(address));
  };
  visit_root(result);
  while (!pending.empty()) {
    const std::size_t at = pending.back();
    Node& node = nodes[at];
    if (node.state == Node::kDone) {
      pending.pop_back();
      continue;
    }
    const bool closing = node.state == Node::kOpen;
    node.state = closing ? Node::kDone : Node::kOpen;
    if (closing) pending.pop_back();
    std::visit(
        [&](const auto& pointer) {
          for_each_child(*pointer, [&](PickleValue& child) {
            replace_resolved(child);
            const void* address = container_address(child);
            node.expanded += 1;
            if (address == nullptr) return;
            const std::size_t child_index = index_of.at(address);
            const Node& child_node = nodes[child_index];
            if (!closing && child_node.state == Node::kNew) pending.push_back(child_index);
            if (child_node.state == Node::kOpen) fail("got a value that contains itself");
            if (!closing) return;
            node.expanded = std::min(node.expanded + child_node.expanded, kMaxExpanded + 1);
            node.height = std::max(node.height, child_node.height + 1);
          });
        },
        containers_[at]);
    if (!closing) node.expanded = 0;
    if (node.height > kMaxDepth) fail("got containers more than {} deep", kMaxDepth);
    if (node.expanded > kMaxExpanded) fail("got more than {} values", kMaxExpanded);
  }
  for (std::size_t i = 0; i < containers_.size(); ++i) {
    if (nodes[i].state == Node::kDone) {
      if (const auto* dict = std::get_if<std::shared_ptr<PickleDict>>(&containers_[i])) check_keys(**dict);
    }
  }
  stack_.clear();
  memo_.clear();
  for (std::size_t i = 0; i < containers_.size(); ++i) {
    if (nodes[i].state == Node::kNew) std::visit([](const auto& pointer) { clear(*pointer); }, containers_[i]);
  }
  keep_containers_ = true;
}

void Unpickler::check_keys(const PickleDict& dict) const {
  std::unordered_set<std::string_view> keys;
  for (const auto& [key, item] : dict) {
    if (key.text() != nullptr && !keys.insert(*key.text()).second) {
      fail("got key '{}' twice in one dict", printable(*key.text()));
    }
  }
}

}  // namespace dfm::formats
