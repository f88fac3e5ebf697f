// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
import "C"

import "reflect"

// What C says of the header, for the test that compares it with the table that the library's own tests make
// (test files cannot use cgo).

func layoutStructs() map[string]reflect.Type {
	return map[string]reflect.Type{
		"tq_allocator":      reflect.TypeFor[C.tq_allocator](),
		"tq_attend_params":  reflect.TypeFor[C.tq_attend_params](),
		"tq_cache_bytes":    reflect.TypeFor[C.tq_cache_bytes](),
		"tq_cache_config":   reflect.TypeFor[C.tq_cache_config](),
		"tq_cache_memory_t": reflect.TypeFor[C.tq_cache_memory_t](),
		"tq_codebook":       reflect.TypeFor[C.tq_codebook](),
		"tq_device_info_t":  reflect.TypeFor[C.tq_device_info_t](),
		"tq_tensor_layout":  reflect.TypeFor[C.tq_tensor_layout](),
	}
}

func layoutTypes() map[string]reflect.Type {
	return map[string]reflect.Type{
		"tq_code_family": reflect.TypeFor[C.tq_code_family](),
		"tq_device_type": reflect.TypeFor[C.tq_device_type](),
		"tq_dtype":       reflect.TypeFor[C.tq_dtype](),
		"tq_rotation":    reflect.TypeFor[C.tq_rotation](),
		"tq_scale_rule":  reflect.TypeFor[C.tq_scale_rule](),
		"tq_sequence":    reflect.TypeFor[C.tq_sequence](),
		"tq_status":      reflect.TypeFor[C.tq_status](),
	}
}

// Constants without a name of their own in Go.
func layoutConstants() map[string]int64 {
	return map[string]int64{
		"TQ_OK":                   C.TQ_OK,
		"TQ_ABI_VERSION":          C.TQ_ABI_VERSION,
		"TQ_VERSION_MAJOR":        C.TQ_VERSION_MAJOR,
		"TQ_VERSION_MINOR":        C.TQ_VERSION_MINOR,
		"TQ_VERSION_PATCH":        C.TQ_VERSION_PATCH,
		"TQ_STRUCT_ALLOCATOR":     C.TQ_STRUCT_ALLOCATOR,
		"TQ_STRUCT_ATTEND_PARAMS": C.TQ_STRUCT_ATTEND_PARAMS,
		"TQ_STRUCT_CACHE_BYTES":   C.TQ_STRUCT_CACHE_BYTES,
		"TQ_STRUCT_CACHE_CONFIG":  C.TQ_STRUCT_CACHE_CONFIG,
		"TQ_STRUCT_CACHE_MEMORY":  C.TQ_STRUCT_CACHE_MEMORY,
		"TQ_STRUCT_CODEBOOK":      C.TQ_STRUCT_CODEBOOK,
		"TQ_STRUCT_DEVICE_INFO":   C.TQ_STRUCT_DEVICE_INFO,
		"TQ_STRUCT_TENSOR_LAYOUT": C.TQ_STRUCT_TENSOR_LAYOUT,
	}
}
