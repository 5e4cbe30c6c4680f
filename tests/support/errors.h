#pragma once
// EXPECT_DFM_ERROR(ExitCode::kData, "no such folder", Dataset::open("x")): that it throws an Error of this code whose
// text holds the words.
#include <gtest/gtest.h>

#include <string>

#include "dfm/base/error.h"

#define EXPECT_DFM_ERROR(expected_code, words, ...)                                          \
  do {                                                                                       \
    try {                                                                                    \
      static_cast<void>(__VA_ARGS__);                                                        \
      ADD_FAILURE() << "no error from " #__VA_ARGS__;                                        \
    } catch (const ::dfm::Error& caught) {                                                   \
      EXPECT_EQ(caught.code(), expected_code) << caught.what();                              \
      EXPECT_NE(std::string(caught.what()).find(words), std::string::npos) << caught.what(); \
    }                                                                                        \
  } while (false)

namespace dfm::test {

// "CODE MESSAGE" of the Error that `body` throws.
template <typename Body>
std::string error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return fmt::format("{} {}", static_cast<int>(error.code()), error.what());
  }
  return "no error";
}

}  // namespace dfm::test
