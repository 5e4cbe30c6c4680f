#include <string_view>

#include "dfm/formats/pickle.h"

namespace dfm::formats {
namespace {

template <typename T>
const T* pointee(const PickleValue& value) {
  const auto* pointer = std::get_if<std::shared_ptr<T>>(&value.value);
  return pointer == nullptr ? nullptr : pointer->get();
}

}  // namespace

const std::string* PickleValue::bytes() const {
  const auto* content = std::get_if<PickleBytes>(&value);
  return content == nullptr ? nullptr : content->bytes.get();
}
const PickleList* PickleValue::list() const { return pointee<PickleList>(*this); }
const PickleList* PickleValue::tuple() const {
  const auto* content = pointee<PickleTuple>(*this);
  return content == nullptr ? nullptr : &content->items;
}
const PickleDict* PickleValue::dict() const { return pointee<PickleDict>(*this); }
const PickleObject* PickleValue::object() const { return pointee<PickleObject>(*this); }

const PickleValue* PickleValue::find(std::string_view key) const {
  const PickleDict* items = dict();
  if (items == nullptr) return nullptr;
  for (const auto& [name, item] : *items) {
    if (const std::string* name_text = name.text(); name_text != nullptr && *name_text == key) return &item;
  }
  return nullptr;
}

}  // namespace dfm::formats
