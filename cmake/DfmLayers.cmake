# The layers, lowest first, and what each may use. tests/layering reads this table and fails on an include against it.
# Every layer may also use `base` and the declarations of `config`.
# layer | layers it may use | third-party headers it may name
set(DFM_LAYER_TABLE
    "base       |                                                          | fmt"
    "config     |                                                          | yaml-cpp fmt"
    "formats    |                                                          | ATen c10 torch nlohmann yaml-cpp libavformat libavcodec libavutil libswscale zlib.h curl arrow parquet fmt"
    "text       |                                                          | sentencepiece_processor.h nlohmann fmt"
    "ops        |                                                          | ATen c10 torch cuda fmt"
    "comm       |                                                          | ATen c10 torch cuda nccl.h fmt"
    "parallel   | ops comm                                                 | ATen c10 torch fmt"
    "models     | ops parallel formats text                                | ATen c10 torch nlohmann fmt"
    "diffusion  |                                                          | ATen c10 torch fmt"
    "data       | formats text                                             | ATen c10 torch nlohmann fmt"
    "checkpoint | comm formats                                             | ATen c10 torch fmt"
    "inspect    | config formats text models data checkpoint                   | ATen c10 torch nlohmann fmt"
    "train      | config formats text ops comm parallel models diffusion data checkpoint | ATen c10 torch nlohmann fmt"
    "prepare    | data models formats text comm                            | ATen c10 torch nlohmann fmt"
    "generate   | models diffusion comm parallel checkpoint formats text ops data | ATen c10 torch nlohmann fmt")

set(DFM_LAYERS)
foreach(row IN LISTS DFM_LAYER_TABLE)
  string(REGEX MATCH "^[a-z]+" layer "${row}")
  list(APPEND DFM_LAYERS ${layer})
endforeach()

# One precompiled header for every target that sees LibTorch: its headers cost 10 to 20 s a file without it.
add_library(dfm_pch OBJECT ${CMAKE_SOURCE_DIR}/cmake/pch.cpp)
target_link_libraries(dfm_pch PRIVATE dfm_flags torch::cpu fmt::fmt)
target_precompile_headers(dfm_pch PRIVATE ${CMAKE_SOURCE_DIR}/cmake/pch.h)

# dfm_layer(NAME [TORCH] SOURCES a.cpp ... [USES dfm_x third::party ...])
# A static library dfm_NAME. TORCH: the layer uses LibTorch tensors and the shared precompiled header.
function(dfm_layer name)
  cmake_parse_arguments(ARG "TORCH" "" "SOURCES;USES" ${ARGN})
  add_library(dfm_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(dfm_${name} PUBLIC dfm_flags fmt::fmt Threads::Threads ${ARG_USES})
  target_include_directories(dfm_${name} PRIVATE ${CMAKE_SOURCE_DIR}/src)
  if(ARG_TORCH)
    target_link_libraries(dfm_${name} PUBLIC torch::cpu)
    target_precompile_headers(dfm_${name} REUSE_FROM dfm_pch)
  endif()
endfunction()

# dfm_test(NAME [TORCH] SOURCES a_test.cpp ... USES dfm_x ... [LABELS golden ...] [PREFIX golden.])
# One GoogleTest binary, its tests registered one by one with CTest as <NAME>.<Suite>.<Test>. RANKS: its tests start ranks
# (tests/support/ranks.h), whose main takes the place of GoogleTest's.
function(dfm_test name)
  cmake_parse_arguments(ARG "TORCH;RANKS" "" "SOURCES;USES;LABELS" ${ARGN})
  add_executable(${name}_test ${ARG_SOURCES})
  if(ARG_RANKS)
    target_link_libraries(${name}_test PRIVATE dfm_test_ranks ${ARG_USES} dfm_flags GTest::gtest)
  else()
    target_link_libraries(${name}_test PRIVATE ${ARG_USES} dfm_flags GTest::gtest GTest::gtest_main)
  endif()
  target_include_directories(${name}_test PRIVATE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/tests)
  target_compile_definitions(${name}_test PRIVATE DFM_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  if(ARG_TORCH)
    target_link_libraries(${name}_test PRIVATE torch::cpu)
    target_precompile_headers(${name}_test REUSE_FROM dfm_pch)
  endif()
  gtest_discover_tests(${name}_test TEST_PREFIX "${name}." DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 300 LABELS "${ARG_LABELS}")
endfunction()
