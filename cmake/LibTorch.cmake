# LibTorch 2.11.0 as imported targets, from the files of the PyPI wheel `torch`. find_package(Torch) is not used: it fails on
# machines without a CUDA toolkit, although the wheel's CPU half needs none.
#   torch::cpu   libtorch_cpu + libc10: all that dfm itself links
#   torch::cuda  libtorch_cuda + libc10_cuda: linked only by the kernel library, loaded only where a driver is
# Where: -DDFM_TORCH_DIR=<site-packages/torch>, else script/bootstrap's .deps/venv, else the Python in PATH.
set(DFM_TORCH_VERSION 2.11.0)
set(DFM_TORCH_DIR "" CACHE PATH "Folder of the torch wheel (has include/ and lib/)")
if(NOT DFM_TORCH_DIR)
  foreach(python IN ITEMS ${CMAKE_SOURCE_DIR}/.deps/venv/bin/python3 python3)
    execute_process(
      COMMAND ${python} -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(found AND EXISTS ${found}/lib/libtorch_cpu.so)
      set(DFM_TORCH_DIR ${found} CACHE PATH "Folder of the torch wheel (has include/ and lib/)" FORCE)
      break()
    endif()
  endforeach()
endif()
if(NOT EXISTS ${DFM_TORCH_DIR}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "LibTorch: got no wheel of torch ${DFM_TORCH_VERSION}, want one in .deps/venv or in python3; "
                      "hint: run script/bootstrap, or set -DDFM_TORCH_DIR=.../site-packages/torch")
endif()
file(STRINGS ${DFM_TORCH_DIR}/version.py torch_version_line REGEX "^__version__ = ")
if(NOT torch_version_line MATCHES "${DFM_TORCH_VERSION}")
  message(FATAL_ERROR "LibTorch in ${DFM_TORCH_DIR}: got ${torch_version_line}, want ${DFM_TORCH_VERSION}; hint: script/bootstrap")
endif()
message(STATUS "LibTorch ${DFM_TORCH_VERSION}: ${DFM_TORCH_DIR}")
get_filename_component(DFM_SITE_PACKAGES ${DFM_TORCH_DIR} DIRECTORY)

function(dfm_torch_library name)
  add_library(torch::${name} SHARED IMPORTED GLOBAL)
  set_target_properties(torch::${name} PROPERTIES IMPORTED_LOCATION ${DFM_TORCH_DIR}/lib/lib${name}.so IMPORTED_NO_SONAME ON)
endfunction()
dfm_torch_library(c10)
dfm_torch_library(torch_cpu)
add_library(torch::cpu INTERFACE IMPORTED GLOBAL)
target_include_directories(torch::cpu SYSTEM INTERFACE ${DFM_TORCH_DIR}/include ${DFM_TORCH_DIR}/include/torch/csrc/api/include)
# The wheel brings headers of its own fmt, which come before the system's: without the library, so header-only.
target_compile_definitions(torch::cpu INTERFACE _GLIBCXX_USE_CXX11_ABI=1 FMT_HEADER_ONLY=1)
target_link_libraries(torch::cpu INTERFACE torch::torch_cpu torch::c10)
# libtorch_cpu finds its CUDA neighbours (cupti, cudart) by its own rpath; the linker must not try to resolve them.
target_link_options(torch::cpu INTERFACE -Wl,--allow-shlib-undefined)
if(EXISTS ${DFM_TORCH_DIR}/lib/libtorch_cuda.so)
  dfm_torch_library(torch_cuda)
  dfm_torch_library(c10_cuda)
  add_library(torch::cuda INTERFACE IMPORTED GLOBAL)
  target_link_libraries(torch::cuda INTERFACE torch::cpu -Wl,--no-as-needed torch::torch_cuda torch::c10_cuda -Wl,--as-needed)
endif()
