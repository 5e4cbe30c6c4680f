#pragma once
// Things that are not tensors between the forward and the backward of an autograd function.
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string>
#include <utility>

namespace dfm::parallel {

template <class T>
struct SavedObject : torch::CustomClassHolder {
  explicit SavedObject(T object) : value(std::move(object)) {}
  T value;
};

template <class T>
void save_object(torch::autograd::AutogradContext& ctx, const std::string& name, T object) {
  ctx.saved_data[name] = at::IValue::make_capsule(c10::make_intrusive<SavedObject<T>>(std::move(object)));
}

template <class T>
const T& saved_object(torch::autograd::AutogradContext& ctx, const std::string& name) {
  const auto holder = ctx.saved_data.at(name).toCapsule();  // the context goes on holding it
  return static_cast<const SavedObject<T>&>(*holder).value;
}

}  // namespace dfm::parallel
