# Apache Arrow and Parquet C++ as arrow::parquet, from the files of the PyPI wheel `pyarrow` (Debian has no package).
# Where: -DDFM_PYARROW_DIR=<site-packages/pyarrow>, else script/bootstrap's .deps/venv, else the Python in PATH.
set(DFM_PYARROW_DIR "" CACHE PATH "Folder of the pyarrow wheel (has include/ and libparquet.so.*)")
if(NOT DFM_PYARROW_DIR)
  foreach(python IN ITEMS ${CMAKE_SOURCE_DIR}/.deps/venv/bin/python3 python3)
    execute_process(
      COMMAND ${python} -c "import importlib.util as u; print(u.find_spec('pyarrow').submodule_search_locations[0])"
      OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(found AND EXISTS ${found}/include/parquet/arrow/reader.h)
      set(DFM_PYARROW_DIR ${found} CACHE PATH "Folder of the pyarrow wheel (has include/ and libparquet.so.*)" FORCE)
      break()
    endif()
  endforeach()
endif()
file(GLOB DFM_PARQUET_LIBRARY ${DFM_PYARROW_DIR}/libparquet.so.*)
file(GLOB DFM_ARROW_LIBRARY ${DFM_PYARROW_DIR}/libarrow.so.*)
if(NOT DFM_PARQUET_LIBRARY OR NOT DFM_ARROW_LIBRARY)
  message(FATAL_ERROR "Arrow: got no wheel of pyarrow, want one in .deps/venv or in python3; "
                      "hint: run script/bootstrap, or set -DDFM_PYARROW_DIR=.../site-packages/pyarrow")
endif()
message(STATUS "Arrow: ${DFM_PYARROW_DIR}")
add_library(arrow::arrow SHARED IMPORTED GLOBAL)
set_target_properties(arrow::arrow PROPERTIES IMPORTED_LOCATION ${DFM_ARROW_LIBRARY})
add_library(arrow::parquet SHARED IMPORTED GLOBAL)
set_target_properties(arrow::parquet PROPERTIES IMPORTED_LOCATION ${DFM_PARQUET_LIBRARY})
target_include_directories(arrow::parquet SYSTEM INTERFACE ${DFM_PYARROW_DIR}/include)
target_link_libraries(arrow::parquet INTERFACE arrow::arrow)
