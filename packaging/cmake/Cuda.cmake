# SPDX-License-Identifier: Apache-2.0
# Enables CUDA as TQ_CUDA asks and builds the object library tqkv_cuda. Sets TQ_CUDA_ENABLED (0 or 1) and
# TQ_CUDA_ARCHS_BUILT.
#
# A toolkit on PATH (or CMAKE_CUDA_COMPILER, CUDACXX) is preferred, then one from Python wheels. The
# architectures are set before CUDA is enabled: CMake would take nvcc's default, one old architecture,
# otherwise. EMULATE compiles the same sources as C++ for the CPU (tests/emulate); of the toolkit it needs the
# headers alone. Sources are listed by hand, the compiled kernels in each wing's instances.txt.
include(packaging/cmake/Instances.cmake)
# The kernels first: they take longest to compile.
set(tq_cuda_sources "")
foreach(wing attend append prefill pages)
  tq_instances(${wing} tq_cuda_sources)
endforeach()
list(APPEND tq_cuda_sources
  cuda/append/launch.cu
  cuda/append/launch_bands.cu
  cuda/append/launch_copies.cu
  cuda/arena.cu
  cuda/attend/launch.cu
  cuda/backend.cu
  cuda/coding.cu
  cuda/device.cu
  cuda/device_layers.cu
  cuda/device_reader.cu
  cuda/layer_tables.cu
  cuda/link.cu
  cuda/latent/codes.cu
  cuda/latent/exact.cu
  cuda/latent/launch.cu
  cuda/merge/launch.cu
  cuda/move/launch.cu
  cuda/paged/launch.cu
  cuda/paged_backend.cu
  cuda/pages/launch.cu
  cuda/plan_upload.cu
  cuda/prefill/launch.cu
  cuda/prefill/launch_wide.cu
  cuda/reserved_space.cu
  cuda/runtime.cu
  cuda/vector_backend.cu
  cuda/vectors/launch_decode.cu
  cuda/vectors/launch_encode.cu
  cuda/vectors/launch_products.cu
  cuda/vectors/launch_rows.cu
  cuda/vectors/launch_select.cu
  cuda/vectors/launch_tiles.cu
  cuda/schedule/work_list.cpp)

if(TQ_CUDA STREQUAL "OFF")
  return()
endif()

# A toolkit: CMAKE_CUDA_COMPILER is set if there is one and the user named none.
include(packaging/cmake/PipCudaToolkit.cmake)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(TQ_NVCC nvcc PATHS /usr/local/cuda/bin NO_CACHE)
  if(TQ_NVCC)
    set(CMAKE_CUDA_COMPILER ${TQ_NVCC} CACHE FILEPATH "CUDA compiler")
  else()
    tq_find_pip_cuda()
  endif()
endif()
if(CMAKE_CUDA_COMPILER)
  tq_use_pip_cuda(${CMAKE_CUDA_COMPILER})
endif()

if(TQ_CUDA STREQUAL "EMULATE")
  if(CMAKE_CUDA_COMPILER)
    file(REAL_PATH ${CMAKE_CUDA_COMPILER} tq_nvcc)
    cmake_path(GET tq_nvcc PARENT_PATH tq_toolkit)
    cmake_path(GET tq_toolkit PARENT_PATH tq_toolkit)
  endif()
  find_path(TQ_CUDA_INCLUDE cuda_runtime.h HINTS ${tq_toolkit}/include PATHS /usr/local/cuda/include)
  if(NOT TQ_CUDA_INCLUDE)
    message(FATAL_ERROR "TQ_CUDA=EMULATE needs the headers of CUDA: put nvcc on PATH, set TQ_CUDA_INCLUDE, "
      "or run packaging/cuda_toolkit.sh.")
  endif()
  # Every source of the target for the CPU. Jumps between stacks are not what _FORTIFY_SOURCE takes them for;
  # warnings are nvcc's to give; -O1 compiles in half the time of -O2, and -O0, for kernels that quick suites
  # run little, in a third of that.
  function(tq_emulated target)
    get_target_property(sources ${target} SOURCES)
    set_source_files_properties(${sources} PROPERTIES LANGUAGE CXX)
    set(folder ${PROJECT_SOURCE_DIR}/tests/emulate)
    target_compile_options(${target} PRIVATE -O1 -fno-strict-aliasing -U_FORTIFY_SOURCE -w
      "SHELL:-include ${folder}/emulate.h")
    list(FILTER sources INCLUDE REGEX "/attend/([a-z_]*band[a-z_0-9]*|(trellis_)?d256)[.]cu$")
    set_source_files_properties(${sources} PROPERTIES COMPILE_OPTIONS -O0)
    target_include_directories(${target} BEFORE PRIVATE ${folder})
    target_include_directories(${target} SYSTEM PRIVATE ${TQ_CUDA_INCLUDE})
  endfunction()
  tq_objects(tqkv_cuda ${tq_cuda_sources} tests/emulate/cudart.cpp tests/emulate/emulate.cpp
    tests/emulate/streams.cpp)
  tq_emulated(tqkv_cuda)
  target_compile_definitions(tqkv_cuda PRIVATE TQ_WARPGROUPS=1)
  set(TQ_CUDA_ENABLED 1)
  set(TQ_CUDA_ARCHS_BUILT "emulated")
  return()
endif()

if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES ${TQ_CUDA_ARCHS})
  endif()
  enable_language(CUDA)
elseif(TQ_CUDA STREQUAL "AUTO")
  message(STATUS "tqkv: no CUDA compiler found; building for the CPU only")
  return()
else()
  message(FATAL_ERROR "TQ_CUDA=ON but no CUDA compiler was found: put nvcc on PATH, set CMAKE_CUDA_COMPILER, "
    "or run packaging/cuda_toolkit.sh.")
endif()

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
tq_objects(tqkv_cuda ${tq_cuda_sources})
set_target_properties(tqkv_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_SEPARABLE_COMPILATION OFF)
# Products of warpgroups are sm_90a's alone.
set(tq_warpgroups 0)
if(";${CMAKE_CUDA_ARCHITECTURES};" MATCHES ";90a(-real)?;")
  set(tq_warpgroups 1)
endif()
target_compile_definitions(tqkv_cuda PRIVATE CUB_WRAPPED_NAMESPACE=tq TQ_WARPGROUPS=${tq_warpgroups})
if(TQ_CUDA_CHECK AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
  set(tq_unjudged ${tq_cuda_sources})
  list(FILTER tq_unjudged INCLUDE REGEX "[.]cu$")
  list(FILTER tq_unjudged EXCLUDE REGEX "/attend/(trellis_)?d[0-9]+[^/]*[.]cu$")
  set_source_files_properties(${tq_unjudged} PROPERTIES COMPILE_OPTIONS -Ofc=max)
endif()
if(TQ_CUDA_LOGS)
  set(tq_launcher ${PROJECT_SOURCE_DIR}/tests/gpu/keep_log.sh ${CMAKE_CUDA_COMPILER_LAUNCHER})
  set_target_properties(tqkv_cuda PROPERTIES CUDA_COMPILER_LAUNCHER "${tq_launcher}")
  set(tq_kernel_objects $<FILTER:$<TARGET_OBJECTS:tqkv_cuda>,INCLUDE,[.]cu[.]o$>)
  add_custom_command(OUTPUT ${PROJECT_BINARY_DIR}/kernels.log VERBATIM COMMAND_EXPAND_LISTS
    COMMAND sh -c "cat \"$@\" >kernels.log" sh "$<JOIN:${tq_kernel_objects},.log$<SEMICOLON>>.log"
    DEPENDS $<TARGET_OBJECTS:tqkv_cuda>)
  add_custom_target(kernel_logs ALL DEPENDS ${PROJECT_BINARY_DIR}/kernels.log)
endif()
set(TQ_CUDA_ENABLED 1)
list(JOIN CMAKE_CUDA_ARCHITECTURES "," TQ_CUDA_ARCHS_BUILT)
