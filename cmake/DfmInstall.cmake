# cmake --install build/release --prefix X: bin/dfm, lib/libdfm_cuda.so and lib/libdfm_nccl.so (if built) and share/dfm. The tree may be moved.
# LibTorch and Arrow are found where they were at build time, unless they are copied beside:
#   -DDFM_INSTALL_TORCH=CPU   what dfm needs without a GPU, about 0.5 GB
#   -DDFM_INSTALL_TORCH=ON    the CUDA half too, several GB
include(GNUInstallDirs)
set(DFM_INSTALL_TORCH OFF CACHE STRING "Copy LibTorch's libraries into the installed tree: OFF, CPU or ON")
set_property(CACHE DFM_INSTALL_TORCH PROPERTY STRINGS OFF CPU ON)

# LibTorch finds its neighbours by paths relative to the wheel's layout (torch/lib, nvidia/*/lib), so that layout is kept.
set(DFM_TORCH_DESTINATION ${CMAKE_INSTALL_LIBDIR}/dfm)
set(DFM_INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
if(DFM_INSTALL_TORCH)
  list(APPEND DFM_INSTALL_RPATH "$ORIGIN/../${DFM_TORCH_DESTINATION}/torch/lib" "$ORIGIN/../${DFM_TORCH_DESTINATION}/pyarrow")
  install(FILES ${DFM_ARROW_LIBRARY} ${DFM_PARQUET_LIBRARY} DESTINATION ${DFM_TORCH_DESTINATION}/pyarrow)
else()
  list(APPEND DFM_INSTALL_RPATH ${DFM_TORCH_DIR}/lib ${DFM_PYARROW_DIR})
endif()

set_target_properties(dfm PROPERTIES INSTALL_RPATH "${DFM_INSTALL_RPATH}")
install(TARGETS dfm RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
foreach(library IN ITEMS dfm_cuda dfm_nccl)
  if(TARGET ${library})
    set_target_properties(${library} PROPERTIES INSTALL_RPATH "${DFM_INSTALL_RPATH}")
  endif()
endforeach()
install(DIRECTORY ${CMAKE_SOURCE_DIR}/configs DESTINATION ${CMAKE_INSTALL_DATADIR}/dfm)
install(FILES ${CMAKE_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/dfm)

if(DFM_INSTALL_TORCH STREQUAL "CPU")
  file(GLOB torch_libraries ${DFM_TORCH_DIR}/lib/libtorch_cpu.so ${DFM_TORCH_DIR}/lib/libc10.so ${DFM_TORCH_DIR}/lib/libgomp*.so*)
  file(GLOB nvidia_libraries ${DFM_SITE_PACKAGES}/nvidia/*/lib/libcupti.so* ${DFM_SITE_PACKAGES}/nvidia/*/lib/libcudart.so*)
elseif(DFM_INSTALL_TORCH)
  file(GLOB torch_libraries ${DFM_TORCH_DIR}/lib/*.so*)
  list(FILTER torch_libraries EXCLUDE REGEX "/lib(torch_python|shm)")
  file(GLOB nvidia_libraries ${DFM_SITE_PACKAGES}/nvidia/*/lib/*.so*)
endif()
foreach(library IN LISTS torch_libraries nvidia_libraries)
  cmake_path(RELATIVE_PATH library BASE_DIRECTORY ${DFM_SITE_PACKAGES} OUTPUT_VARIABLE name)
  cmake_path(GET name PARENT_PATH folder)
  install(FILES ${library} DESTINATION ${DFM_TORCH_DESTINATION}/${folder})
endforeach()
