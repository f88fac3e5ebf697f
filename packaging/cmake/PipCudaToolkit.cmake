# SPDX-License-Identifier: Apache-2.0
# Finds a CUDA 13 toolkit installed from Python wheels (folder nvidia/cu13) and points CMake at it, before
# CUDA is enabled.
#
# Looked for in $TQKV_CUDA_WHEELS, then in ${XDG_CACHE_HOME:-~/.cache}/tqkv/cuda-13.0, where
# packaging/cuda_toolkit.sh puts it. The wheels have neither lib64 nor targets/, but nvcc's profile passes
# -L<root>/lib64; without the -L below the very first compiler check fails because cudadevrt and cudart_static
# are not found.
#
# tq_find_pip_cuda(FOUND) sets FOUND in the caller, and CMAKE_CUDA_COMPILER, CUDAToolkit_ROOT and
# CMAKE_CUDA_FLAGS in the cache.

function(tq_find_pip_cuda found)
  set(${found} FALSE PARENT_SCOPE)
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
      set(CUDAToolkit_ROOT "${root}" CACHE PATH "CUDA toolkit")
      if(NOT CMAKE_CUDA_FLAGS MATCHES "-L${root}/lib")
        set(CMAKE_CUDA_FLAGS "-L${root}/lib ${CMAKE_CUDA_FLAGS}" CACHE STRING "CUDA flags" FORCE)
      endif()
      set(${found} TRUE PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()
