// SPDX-License-Identifier: Apache-2.0
// The CPU backend as the core sees it: creation, exact byte counts, merge of partial results, and the
// instruction set in use.
#pragma once
#include <memory>

#include "paged_backend.h"
#include "vector_backend.h"

namespace tq {
namespace cpu {

// geometry is kept by reference where it points to layers: its layers array must outlive the backend. pool:
// memory for the pages, 256-byte aligned, or null. Throws tq::Error: kOutOfMemory, and kNotSupported if the
// environment variable TQKV_CPU_ISA names an instruction set that is not compiled in or not on this machine.
std::unique_ptr<Backend> create_cpu_backend(const Geometry& geometry, const HostOps& ops, void* pool);
// The same with an instruction set named by the caller (tests, benches); null = as above.
std::unique_ptr<Backend> create_cpu_backend_for(const Geometry& geometry, const HostOps& ops, void* pool,
                                                const char* isa);

// Verbs over pages and arrays of the caller's; geometry and isa likewise. It has no pages of its own.
std::unique_ptr<PagedBackend> create_cpu_paged_backend(const Geometry& geometry, const HostOps& ops,
                                                       const char* isa);

// Vectors on their own; isa likewise.
std::unique_ptr<VectorBackend> create_cpu_vectors(const VectorGeometry& geometry, const HostOps& ops,
                                                  const char* isa);

BackendBytes cpu_backend_bytes(const Geometry& geometry);

void merge_states_cpu(const MergeRequest& request);

// Name of the instruction set that a backend created now would use, "scalar" .. "avx3_dl"; if TQKV_CPU_ISA
// names none of them, the best one.
const char* active_isa();
// Names of those compiled in and usable here, separated by spaces, best last. Static storage.
const char* supported_isas();

}  // namespace cpu
}  // namespace tq
