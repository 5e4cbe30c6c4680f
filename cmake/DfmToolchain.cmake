# Compiler flags shared by every target: a `dfm_flags` interface library that dfm_layer and dfm_test link.
add_library(dfm_flags INTERFACE)
target_compile_features(dfm_flags INTERFACE cxx_std_20)
target_include_directories(dfm_flags INTERFACE ${CMAKE_SOURCE_DIR}/include)
target_compile_options(
  dfm_flags
  INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall
            -Wextra
            -Wpedantic
            -Wshadow
            -Wnon-virtual-dtor
            -Wno-missing-field-initializers>)
if(DFM_WERROR)
  target_compile_options(dfm_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(DFM_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${DFM_SANITIZE}> $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=${DFM_SANITIZE})
endif()

# A fast linker, when there is one: LibTorch links are the slow part of an incremental build.
find_program(DFM_MOLD mold)
find_program(DFM_LLD ld.lld)
if(DFM_MOLD)
  add_link_options(-fuse-ld=mold)
elseif(DFM_LLD)
  add_link_options(-fuse-ld=lld)
endif()
# Two compilers at most by default: a file that includes ATen takes about 1 GB.
