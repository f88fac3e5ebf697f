// SPDX-License-Identifier: Apache-2.0
// Made by generate.py from include/tqkv.h; do not edit. A test makes it anew and compares.

package tqkv

// #include "shim.h"
import "C"

import "reflect"

// What C says of the header, for the test that compares it with the table that the library's own tests make
// (test files cannot use cgo).

type namedType struct {
	name string
	kind reflect.Type
}

type namedConstant struct {
	name  string
	value int64
}

func layoutStructs() []namedType {
	return []namedType{
		{"tq_device_info", reflect.TypeFor[C.tq_device_info]()},
		{"tq_levels", reflect.TypeFor[C.tq_levels]()},
		{"tq_codebook", reflect.TypeFor[C.tq_codebook]()},
		{"tq_allocator", reflect.TypeFor[C.tq_allocator]()},
		{"tq_key_bands", reflect.TypeFor[C.tq_key_bands]()},
		{"tq_layer_config", reflect.TypeFor[C.tq_layer_config]()},
		{"tq_cache_config", reflect.TypeFor[C.tq_cache_config]()},
		{"tq_cache_bytes", reflect.TypeFor[C.tq_cache_bytes]()},
		{"tq_layer_bytes", reflect.TypeFor[C.tq_layer_bytes]()},
		{"tq_cache_memory", reflect.TypeFor[C.tq_cache_memory]()},
		{"tq_tensor_layout", reflect.TypeFor[C.tq_tensor_layout]()},
		{"tq_attend_params", reflect.TypeFor[C.tq_attend_params]()},
		{"tq_pages", reflect.TypeFor[C.tq_pages]()},
		{"tq_page_layout", reflect.TypeFor[C.tq_page_layout]()},
		{"tq_paged_step", reflect.TypeFor[C.tq_paged_step]()},
		{"tq_state", reflect.TypeFor[C.tq_state]()},
		{"tq_io", reflect.TypeFor[C.tq_io]()},
		{"tq_quantizer_config", reflect.TypeFor[C.tq_quantizer_config]()},
		{"tq_quantizer_info", reflect.TypeFor[C.tq_quantizer_info]()},
		{"tq_calibration_config", reflect.TypeFor[C.tq_calibration_config]()},
		{"tq_calibration_goal", reflect.TypeFor[C.tq_calibration_goal]()},
		{"tq_calibration_result", reflect.TypeFor[C.tq_calibration_result]()},
	}
}

func layoutNumbers() []namedType {
	return []namedType{
		{"tq_status", reflect.TypeFor[C.tq_status]()},
		{"tq_device_type", reflect.TypeFor[C.tq_device_type]()},
		{"tq_dtype", reflect.TypeFor[C.tq_dtype]()},
		{"tq_rotation", reflect.TypeFor[C.tq_rotation]()},
		{"tq_scale_rule", reflect.TypeFor[C.tq_scale_rule]()},
		{"tq_code_family", reflect.TypeFor[C.tq_code_family]()},
		{"tq_sketch", reflect.TypeFor[C.tq_sketch]()},
		{"tq_sketch_rule", reflect.TypeFor[C.tq_sketch_rule]()},
		{"tq_layer_kind", reflect.TypeFor[C.tq_layer_kind]()},
		{"tq_sequence", reflect.TypeFor[C.tq_sequence]()},
		{"tq_page_order", reflect.TypeFor[C.tq_page_order]()},
	}
}

func layoutConstants() []namedConstant {
	return []namedConstant{
		{"TQ_VERSION_MAJOR", C.TQ_VERSION_MAJOR},
		{"TQ_VERSION_MINOR", C.TQ_VERSION_MINOR},
		{"TQ_VERSION_PATCH", C.TQ_VERSION_PATCH},
		{"TQ_ABI_VERSION", C.TQ_ABI_VERSION},
		{"TQ_OK", C.TQ_OK},
		{"TQ_ERROR_INVALID_ARGUMENT", C.TQ_ERROR_INVALID_ARGUMENT},
		{"TQ_ERROR_INVALID_STATE", C.TQ_ERROR_INVALID_STATE},
		{"TQ_ERROR_OUT_OF_MEMORY", C.TQ_ERROR_OUT_OF_MEMORY},
		{"TQ_ERROR_CAPACITY", C.TQ_ERROR_CAPACITY},
		{"TQ_ERROR_NOT_SUPPORTED", C.TQ_ERROR_NOT_SUPPORTED},
		{"TQ_ERROR_NO_DEVICE", C.TQ_ERROR_NO_DEVICE},
		{"TQ_ERROR_DRIVER", C.TQ_ERROR_DRIVER},
		{"TQ_ERROR_CUDA", C.TQ_ERROR_CUDA},
		{"TQ_ERROR_VERSION", C.TQ_ERROR_VERSION},
		{"TQ_ERROR_CORRUPT_DATA", C.TQ_ERROR_CORRUPT_DATA},
		{"TQ_ERROR_INCOMPATIBLE", C.TQ_ERROR_INCOMPATIBLE},
		{"TQ_ERROR_WORKSPACE_TOO_SMALL", C.TQ_ERROR_WORKSPACE_TOO_SMALL},
		{"TQ_ERROR_CAPTURE", C.TQ_ERROR_CAPTURE},
		{"TQ_ERROR_IO", C.TQ_ERROR_IO},
		{"TQ_ERROR_INTERNAL", C.TQ_ERROR_INTERNAL},
		{"TQ_STRUCT_CACHE_CONFIG", C.TQ_STRUCT_CACHE_CONFIG},
		{"TQ_STRUCT_CACHE_BYTES", C.TQ_STRUCT_CACHE_BYTES},
		{"TQ_STRUCT_CACHE_MEMORY", C.TQ_STRUCT_CACHE_MEMORY},
		{"TQ_STRUCT_TENSOR_LAYOUT", C.TQ_STRUCT_TENSOR_LAYOUT},
		{"TQ_STRUCT_ATTEND_PARAMS", C.TQ_STRUCT_ATTEND_PARAMS},
		{"TQ_STRUCT_DEVICE_INFO", C.TQ_STRUCT_DEVICE_INFO},
		{"TQ_STRUCT_CODEBOOK", C.TQ_STRUCT_CODEBOOK},
		{"TQ_STRUCT_ALLOCATOR", C.TQ_STRUCT_ALLOCATOR},
		{"TQ_STRUCT_LAYER_CONFIG", C.TQ_STRUCT_LAYER_CONFIG},
		{"TQ_STRUCT_LAYER_BYTES", C.TQ_STRUCT_LAYER_BYTES},
		{"TQ_STRUCT_STATE", C.TQ_STRUCT_STATE},
		{"TQ_STRUCT_IO", C.TQ_STRUCT_IO},
		{"TQ_STRUCT_PAGES", C.TQ_STRUCT_PAGES},
		{"TQ_STRUCT_PAGE_LAYOUT", C.TQ_STRUCT_PAGE_LAYOUT},
		{"TQ_STRUCT_PAGED_STEP", C.TQ_STRUCT_PAGED_STEP},
		{"TQ_STRUCT_LEVELS", C.TQ_STRUCT_LEVELS},
		{"TQ_STRUCT_QUANTIZER_CONFIG", C.TQ_STRUCT_QUANTIZER_CONFIG},
		{"TQ_STRUCT_QUANTIZER_INFO", C.TQ_STRUCT_QUANTIZER_INFO},
		{"TQ_STRUCT_KEY_BANDS", C.TQ_STRUCT_KEY_BANDS},
		{"TQ_STRUCT_CALIBRATION_CONFIG", C.TQ_STRUCT_CALIBRATION_CONFIG},
		{"TQ_STRUCT_CALIBRATION_GOAL", C.TQ_STRUCT_CALIBRATION_GOAL},
		{"TQ_STRUCT_CALIBRATION_RESULT", C.TQ_STRUCT_CALIBRATION_RESULT},
		{"TQ_DEVICE_CPU", C.TQ_DEVICE_CPU},
		{"TQ_DEVICE_CUDA", C.TQ_DEVICE_CUDA},
		{"TQ_F32", C.TQ_F32},
		{"TQ_F16", C.TQ_F16},
		{"TQ_BF16", C.TQ_BF16},
		{"TQ_ROTATION_HADAMARD", C.TQ_ROTATION_HADAMARD},
		{"TQ_ROTATION_DENSE", C.TQ_ROTATION_DENSE},
		{"TQ_SCALE_LS", C.TQ_SCALE_LS},
		{"TQ_SCALE_UNBIASED", C.TQ_SCALE_UNBIASED},
		{"TQ_SCALE_NORM", C.TQ_SCALE_NORM},
		{"TQ_SCALE_PAPER", C.TQ_SCALE_PAPER},
		{"TQ_CODE_SCALAR", C.TQ_CODE_SCALAR},
		{"TQ_CODE_PROD", C.TQ_CODE_PROD},
		{"TQ_CODE_GROUPED", C.TQ_CODE_GROUPED},
		{"TQ_CODE_LEVELS", C.TQ_CODE_LEVELS},
		{"TQ_CODE_TRELLIS", C.TQ_CODE_TRELLIS},
		{"TQ_SKETCH_ORTHOGONAL", C.TQ_SKETCH_ORTHOGONAL},
		{"TQ_SKETCH_GAUSSIAN", C.TQ_SKETCH_GAUSSIAN},
		{"TQ_SKETCH_UNBIASED", C.TQ_SKETCH_UNBIASED},
		{"TQ_SKETCH_LEAST_ERROR", C.TQ_SKETCH_LEAST_ERROR},
		{"TQ_KEYS_VALUES", C.TQ_KEYS_VALUES},
		{"TQ_LATENT", C.TQ_LATENT},
		{"TQ_FLAG_NO_ZERO_ON_FREE", C.TQ_FLAG_NO_ZERO_ON_FREE},
		{"TQ_FLAG_NO_SCALE_SEARCH", C.TQ_FLAG_NO_SCALE_SEARCH},
		{"TQ_FLAG_BATCH_INVARIANT", C.TQ_FLAG_BATCH_INVARIANT},
		{"TQ_FLAG_STORE_ONCE", C.TQ_FLAG_STORE_ONCE},
		{"TQ_FLAG_EXACT_CHUNK", C.TQ_FLAG_EXACT_CHUNK},
		{"TQ_NOTICED_NONFINITE", C.TQ_NOTICED_NONFINITE},
		{"TQ_NOTICED_SATURATED", C.TQ_NOTICED_SATURATED},
		{"TQ_NOTICED_SHORT_WINDOW", C.TQ_NOTICED_SHORT_WINDOW},
		{"TQ_NOTICED_OUT_OF_RANGE", C.TQ_NOTICED_OUT_OF_RANGE},
		{"TQ_PAGES_BLOCKS_FIRST", C.TQ_PAGES_BLOCKS_FIRST},
		{"TQ_PAGES_HEADS_FIRST", C.TQ_PAGES_HEADS_FIRST},
	}
}
