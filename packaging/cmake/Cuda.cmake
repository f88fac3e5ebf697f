# SPDX-License-Identifier: Apache-2.0
# Enables CUDA as TQ_CUDA asks and builds the object library tqkv_cuda. Sets TQ_CUDA_ENABLED (0 or 1) and
# TQ_CUDA_ARCHS_BUILT.
#
# A toolkit on PATH (or CMAKE_CUDA_COMPILER, CUDACXX) is preferred, then one from Python wheels. The
# architectures are set before CUDA is enabled: CMake would take nvcc's default, one old architecture,
# otherwise. Listed by hand, like all sources.
set(tq_cuda_sources
  cuda/arena.cu
  cuda/backend.cu
  cuda/attend/launch.cu
  cuda/attend/instances/d64.cu
  cuda/attend/instances/d96.cu
  cuda/attend/instances/d128.cu
  cuda/attend/instances/d128_more.cu
  cuda/attend/instances/d192.cu
  cuda/attend/instances/d256.cu
  cuda/attend/instances/generic_small.cu
  cuda/attend/instances/generic_mid.cu
  cuda/attend/instances/generic_large.cu
  cuda/append/instances/d128.cu
  cuda/append/instances/d224.cu
  cuda/append/instances/d256.cu
  cuda/append/instances/d512.cu
  cuda/append/instances/d576.cu
  cuda/append/instances/dmid.cu
  cuda/append/instances/dsmall.cu
  cuda/pages/launch.cu
  cuda/merge/launch.cu
  cuda/append/launch.cu
  cuda/prefill/launch.cu
  cuda/prefill/instances/d64.cu
  cuda/prefill/instances/d96.cu
  cuda/prefill/instances/d128.cu
  cuda/prefill/instances/d192.cu
  cuda/prefill/instances/d256.cu
  cuda/plan_upload.cu
  cuda/runtime.cu
  cuda/schedule/work_list.cpp)

if(TQ_CUDA STREQUAL "OFF" OR (TQ_CUDA STREQUAL "AUTO" AND NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/cuda/backend.cu))
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES ${TQ_CUDA_ARCHS})
endif()
include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(TQ_NVCC nvcc PATHS /usr/local/cuda/bin NO_CACHE)
  if(TQ_NVCC)
    set(CMAKE_CUDA_COMPILER ${TQ_NVCC} CACHE FILEPATH "CUDA compiler")
  else()
    include(packaging/cmake/PipCudaToolkit.cmake)
    tq_find_pip_cuda(tq_pip_cuda)
  endif()
endif()
if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
  enable_language(CUDA)
elseif(TQ_CUDA STREQUAL "AUTO")
  message(STATUS "tqkv: no CUDA compiler found; building for the CPU only")
  return()
else()
  message(FATAL_ERROR "TQ_CUDA=ON but no CUDA compiler was found: put nvcc on PATH, set CMAKE_CUDA_COMPILER, or run packaging/cuda_toolkit.sh.")
endif()

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
tq_objects(tqkv_cuda ${tq_cuda_sources})
set_target_properties(tqkv_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_SEPARABLE_COMPILATION OFF)
target_compile_definitions(tqkv_cuda PRIVATE CUB_WRAPPED_NAMESPACE=tq)
set(TQ_CUDA_ENABLED 1)
list(JOIN CMAKE_CUDA_ARCHITECTURES "," TQ_CUDA_ARCHS_BUILT)
