#pragma once
// Facts are one JSON object; the text for people is made of the same object, so both say the same.
#include <ATen/core/Tensor.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace dfm::inspect {

using Facts = nlohmann::ordered_json;

// Keys become words (`num_samples`: "num samples"), values with their names aligned; objects are sections, arrays of
// objects tables, arrays of numbers lines. What ends with `bytes` is written as a size. A top object's `path`, `kind`
// and `status` are its title. At most `width` columns where words allow.
std::string to_text(const Facts& facts, std::size_t width = 100);

// "bf16", "fp32", "int64" ...
std::string dtype_name(at::ScalarType dtype);
// Shape, dtype, smallest, largest, mean and standard deviation.
Facts describe_tensor(const at::Tensor& tensor);
// {"min", "median", "max"} of numbers that are not empty.
Facts describe_spread(std::vector<std::int64_t> values);
// Valid UTF-8 of one line, at most `most` bytes and "..." after them.
std::string one_line(const std::string& text, std::size_t most);

}  // namespace dfm::inspect
