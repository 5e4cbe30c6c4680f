# cmake --install: bin/dfm, lib/ (the kernel library, if built) and share/dfm/configs. LibTorch is found by rpath where it was at
# build time; -DDFM_INSTALL_TORCH=ON copies its libraries beside, so that the tree runs on another machine.
include(GNUInstallDirs)
