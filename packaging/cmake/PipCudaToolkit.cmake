# SPDX-License-Identifier: Apache-2.0
# A CUDA 13 toolkit installed from Python wheels (folder nvidia/cu13), for CMake before CUDA is enabled.
#
# The wheels have neither lib64 nor targets/, but nvcc's profile passes -L<root>/lib64; without another -L the
# very first compiler check fails because cudadevrt and cudart_static are not found.

# tq_find_pip_cuda() sets CMAKE_CUDA_COMPILER in the cache if a toolkit lies in $TQKV_CUDA_WHEELS or in
# ${XDG_CACHE_HOME:-~/.cache}/tqkv/cuda-13.0, where packaging/cuda_toolkit.sh puts it.
function(tq_find_pip_cuda)
  set(places "$ENV{TQKV_CUDA_WHEELS}")
  if(DEFINED ENV{XDG_CACHE_HOME})
    list(APPEND places "$ENV{XDG_CACHE_HOME}/tqkv/cuda-13.0")
  else()
    list(APPEND places "$ENV{HOME}/.cache/tqkv/cuda-13.0")
  endif()
  foreach(place IN LISTS places)
    set(root "${place}/nvidia/cu13")
    if(EXISTS "${root}/bin/nvcc" AND EXISTS "${root}/include/cuda_runtime.h")
      message(STATUS "tqkv: CUDA toolkit from Python wheels in ${root}")
      set(CMAKE_CUDA_COMPILER "${root}/bin/nvcc" CACHE FILEPATH "CUDA compiler")
      return()
    endif()
  endforeach()
endfunction()

# tq_use_pip_cuda(NVCC) sets CUDAToolkit_ROOT and CMAKE_CUDA_FLAGS in the cache if that compiler is of wheels.
function(tq_use_pip_cuda nvcc)
  file(REAL_PATH "${nvcc}" root)
  cmake_path(GET root PARENT_PATH root)
  cmake_path(GET root PARENT_PATH root)
  if(EXISTS "${root}/lib64" OR EXISTS "${root}/targets" OR NOT EXISTS "${root}/lib/libcudart_static.a")
    return()
  endif()
  set(CUDAToolkit_ROOT "${root}" CACHE PATH "CUDA toolkit")
  if(NOT CMAKE_CUDA_FLAGS MATCHES "-L${root}/lib")
    set(CMAKE_CUDA_FLAGS "-L${root}/lib ${CMAKE_CUDA_FLAGS}" CACHE STRING "CUDA flags" FORCE)
  endif()
endfunction()
