# SPDX-License-Identifier: Apache-2.0
# Made by generate.py from include/tqkv.h; do not edit. A test makes it anew and compares.
"""include/tqkv.h as ctypes: constants, structs, and the result and arguments of every function."""
import ctypes
from ctypes import (POINTER, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32,
                    c_uint64, c_uint8, c_void_p)

CONSTANTS = {
    "TQ_VERSION_MAJOR": 0,
    "TQ_VERSION_MINOR": 1,
    "TQ_VERSION_PATCH": 0,
    "TQ_ABI_VERSION": 0,
    "TQ_OK": 0,
    "TQ_ERROR_INVALID_ARGUMENT": 1,
    "TQ_ERROR_INVALID_STATE": 2,
    "TQ_ERROR_OUT_OF_MEMORY": 3,
    "TQ_ERROR_CAPACITY": 4,
    "TQ_ERROR_NOT_SUPPORTED": 5,
    "TQ_ERROR_NO_DEVICE": 6,
    "TQ_ERROR_DRIVER": 7,
    "TQ_ERROR_CUDA": 8,
    "TQ_ERROR_VERSION": 9,
    "TQ_ERROR_CORRUPT_DATA": 10,
    "TQ_ERROR_INCOMPATIBLE": 11,
    "TQ_ERROR_WORKSPACE_TOO_SMALL": 12,
    "TQ_ERROR_CAPTURE": 13,
    "TQ_ERROR_IO": 14,
    "TQ_ERROR_INTERNAL": 99,
    "TQ_STRUCT_CACHE_CONFIG": 1,
    "TQ_STRUCT_CACHE_BYTES": 2,
    "TQ_STRUCT_CACHE_MEMORY": 3,
    "TQ_STRUCT_TENSOR_LAYOUT": 4,
    "TQ_STRUCT_ATTEND_PARAMS": 5,
    "TQ_STRUCT_DEVICE_INFO": 6,
    "TQ_STRUCT_CODEBOOK": 7,
    "TQ_STRUCT_ALLOCATOR": 8,
    "TQ_STRUCT_LAYER_CONFIG": 9,
    "TQ_STRUCT_LAYER_BYTES": 10,
    "TQ_STRUCT_STATE": 11,
    "TQ_STRUCT_IO": 12,
    "TQ_STRUCT_PAGES": 13,
    "TQ_STRUCT_PAGE_LAYOUT": 14,
    "TQ_STRUCT_PAGED_STEP": 15,
    "TQ_STRUCT_LEVELS": 16,
    "TQ_STRUCT_QUANTIZER_CONFIG": 17,
    "TQ_STRUCT_QUANTIZER_INFO": 18,
    "TQ_STRUCT_KEY_BANDS": 19,
    "TQ_STRUCT_CALIBRATION_CONFIG": 20,
    "TQ_STRUCT_CALIBRATION_GOAL": 21,
    "TQ_STRUCT_CALIBRATION_RESULT": 22,
    "TQ_DEVICE_CPU": 1,
    "TQ_DEVICE_CUDA": 2,
    "TQ_F32": 1,
    "TQ_F16": 2,
    "TQ_BF16": 3,
    "TQ_ROTATION_HADAMARD": 1,
    "TQ_ROTATION_DENSE": 2,
    "TQ_SCALE_LS": 1,
    "TQ_SCALE_UNBIASED": 2,
    "TQ_SCALE_NORM": 3,
    "TQ_SCALE_PAPER": 4,
    "TQ_CODE_SCALAR": 1,
    "TQ_CODE_PROD": 2,
    "TQ_CODE_GROUPED": 3,
    "TQ_CODE_LEVELS": 4,
    "TQ_CODE_TRELLIS": 5,
    "TQ_SKETCH_ORTHOGONAL": 1,
    "TQ_SKETCH_GAUSSIAN": 2,
    "TQ_SKETCH_UNBIASED": 1,
    "TQ_SKETCH_LEAST_ERROR": 2,
    "TQ_KEYS_VALUES": 1,
    "TQ_LATENT": 2,
    "TQ_FLAG_NO_ZERO_ON_FREE": 1,
    "TQ_FLAG_NO_SCALE_SEARCH": 2,
    "TQ_FLAG_BATCH_INVARIANT": 4,
    "TQ_FLAG_STORE_ONCE": 8,
    "TQ_FLAG_EXACT_CHUNK": 16,
    "TQ_NOTICED_NONFINITE": 1,
    "TQ_NOTICED_SATURATED": 2,
    "TQ_NOTICED_SHORT_WINDOW": 4,
    "TQ_NOTICED_OUT_OF_RANGE": 8,
    "TQ_PAGES_BLOCKS_FIRST": 1,
    "TQ_PAGES_HEADS_FIRST": 2,
}


class Struct(ctypes.Structure):
    """struct_size is set by the constructor; the other fields are zero unless given."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)

    def __repr__(self):
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name, *_ in self._fields_
                          if name not in ("struct_size", "reserved"))
        return f"{type(self).__name__}({shown})"


class DeviceInfo(Struct):
    _fields_ = [("struct_size", c_uint32), ("device_type", c_int32), ("device_id", c_int32),
                ("compute_major", c_int32), ("compute_minor", c_int32), ("num_units", c_int32),
                ("memory_bytes", c_int64), ("name", c_char * 128)]


class Levels(Struct):
    _fields_ = [("struct_size", c_uint32), ("bits", c_int32), ("unit", c_float), ("reserved", c_uint32),
                ("levels", POINTER(c_float)), ("boundaries", POINTER(c_float))]


class Codebook(Struct):
    _fields_ = [("struct_size", c_uint32), ("bits", c_int32), ("unit", c_float), ("magnitude", c_uint8 * 32)]


ALLOC_FUNCTION = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_size_t, c_size_t, c_int32, c_int32)
FREE_FUNCTION = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_size_t, c_int32, c_int32)


class Allocator(Struct):
    _fields_ = [("struct_size", c_uint32), ("reserved", c_uint32), ("user", c_void_p),
                ("alloc", ALLOC_FUNCTION), ("free", FREE_FUNCTION)]


class KeyBands(Struct):
    _fields_ = [("struct_size", c_uint32), ("num_bands", c_int32), ("bits", POINTER(c_int32)),
                ("order", POINTER(c_int32))]


class LayerConfig(Struct):
    _fields_ = [("struct_size", c_uint32), ("num_q_heads", c_int32), ("num_kv_heads", c_int32),
                ("head_dim", c_int32), ("value_dim", c_int32), ("key_bits", c_int32),
                ("value_bits", c_int32), ("key_family", c_int32), ("value_family", c_int32),
                ("rotation", c_int32), ("sliding_window", c_int32), ("shares_layer", c_int32),
                ("first_kv_head", c_int32), ("group_size", c_int32), ("key_levels", POINTER(Levels)),
                ("value_levels", POINTER(Levels)), ("layer_kind", c_int32), ("reserved", c_uint32),
                ("key_bands", POINTER(KeyBands))]


class CacheConfig(Struct):
    _fields_ = [("struct_size", c_uint32), ("device_type", c_int32), ("device_id", c_int32),
                ("num_layers", c_int32), ("num_q_heads", c_int32), ("num_kv_heads", c_int32),
                ("head_dim", c_int32), ("value_dim", c_int32), ("io_dtype", c_int32), ("key_bits", c_int32),
                ("value_bits", c_int32), ("code_family", c_int32), ("layer_key_bits", POINTER(c_int32)),
                ("layer_value_bits", POINTER(c_int32)), ("rotation", c_int32), ("key_scale_rule", c_int32),
                ("value_scale_rule", c_int32), ("page_size", c_int32), ("rotation_seed", c_uint64),
                ("first_layer", c_int32), ("first_kv_head", c_int32), ("key_codebook", POINTER(Codebook)),
                ("value_codebook", POINTER(Codebook)), ("max_tokens", c_int64),
                ("max_reserve_tokens", c_int64), ("max_sequence_tokens", c_int64),
                ("max_sequences", c_int32), ("max_batch_sequences", c_int32), ("max_batch_tokens", c_int64),
                ("max_raw_tokens", c_int64), ("window_tokens", c_int32), ("sink_tokens", c_int32),
                ("rollback_tokens", c_int32), ("num_threads", c_int32), ("flags", c_uint64),
                ("allocator", POINTER(Allocator)), ("pool", c_void_p), ("pool_bytes", c_int64),
                ("layers", POINTER(LayerConfig)), ("key_family", c_int32), ("value_family", c_int32),
                ("group_size", c_int32), ("sketch", c_int32), ("sketch_rule", c_int32),
                ("sketch_factor", c_float), ("key_levels", POINTER(Levels)),
                ("value_levels", POINTER(Levels)), ("layer_kind", c_int32), ("reserved", c_uint32)]


class CacheBytes(Struct):
    _fields_ = [("struct_size", c_uint32), ("reserved", c_uint32), ("page_bytes", c_int64),
                ("raw_bytes", c_int64), ("table_bytes", c_int64), ("workspace_bytes", c_int64),
                ("device_bytes", c_int64), ("host_bytes", c_int64), ("num_pages", c_int64),
                ("token_bytes", c_int64), ("fp16_token_bytes", c_int64)]


class LayerBytes(Struct):
    _fields_ = [("struct_size", c_uint32), ("group", c_int32), ("num_pages", c_int64),
                ("page_bytes", c_int64), ("raw_bytes", c_int64), ("token_bytes", c_int64),
                ("fp16_token_bytes", c_int64)]


class CacheMemory(Struct):
    _fields_ = [("struct_size", c_uint32), ("num_sequences", c_int32), ("tokens", c_int64),
                ("pages_used", c_int64), ("pages_total", c_int64), ("stored_bytes_used", c_int64),
                ("raw_bytes", c_int64), ("device_bytes", c_int64), ("host_bytes", c_int64),
                ("compression", c_double), ("raw_bytes_used", c_int64)]


class TensorLayout(Struct):
    _fields_ = [("struct_size", c_uint32), ("reserved", c_uint32), ("key_token_stride", c_int64),
                ("key_head_stride", c_int64), ("value_token_stride", c_int64),
                ("value_head_stride", c_int64)]


class AttendParams(Struct):
    _fields_ = [("struct_size", c_uint32), ("out_dtype", c_int32), ("softmax_scale", c_float),
                ("logit_softcap", c_float), ("sliding_window", c_int64), ("sink_logits", POINTER(c_float)),
                ("history_only", c_int32), ("tree_words", c_int32), ("q_token_stride", c_int64),
                ("q_head_stride", c_int64), ("out_token_stride", c_int64), ("out_head_stride", c_int64),
                ("visible_begin", POINTER(c_int32)), ("visible_end", POINTER(c_int32)),
                ("tree_mask", POINTER(c_uint64)), ("alibi_slopes", POINTER(c_float)), ("chunk_k", c_void_p),
                ("chunk_v", c_void_p), ("chunk_layout", POINTER(TensorLayout))]


class Pages(Struct):
    _fields_ = [("struct_size", c_uint32), ("block_size", c_int32), ("base", c_void_p),
                ("num_blocks", c_int64), ("block_stride", c_int64), ("head_stride", c_int64)]


class PageLayout(Struct):
    _fields_ = [("struct_size", c_uint32), ("alignment", c_int32), ("block_bytes", c_int64),
                ("block_head_bytes", c_int64), ("token_bytes", c_int64), ("block_stride", c_int64),
                ("head_stride", c_int64), ("total_bytes", c_int64)]


class PagedStep(Struct):
    _fields_ = [("struct_size", c_uint32), ("num_reqs", c_int32), ("num_tokens", c_int64),
                ("max_query_len", c_int32), ("max_seq_len", c_int32), ("slot_mapping", POINTER(c_int64)),
                ("block_table", POINTER(c_int32)), ("block_table_stride", c_int64),
                ("seq_lens", POINTER(c_int32)), ("query_start_loc", POINTER(c_int32))]


class State(Struct):
    _fields_ = [("struct_size", c_uint32), ("first_layer", c_int32), ("num_layers", c_int32),
                ("first_kv_head", c_int32), ("num_kv_heads", c_int32), ("io_dtype", c_int32),
                ("first_token", c_int64), ("num_tokens", c_int64), ("exact_sinks", c_int64),
                ("exact_first", c_int64), ("rollback_tokens", c_int64), ("flags", c_uint64),
                ("identity", c_uint64), ("bytes", c_int64), ("fields", c_uint32 * 16)]


WRITE_FUNCTION = ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t)
READ_FUNCTION = ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t)
MAC_FUNCTION = ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t, c_void_p)


class Io(Struct):
    _fields_ = [("struct_size", c_uint32), ("mac_bytes", c_int32), ("user", c_void_p),
                ("write", WRITE_FUNCTION), ("read", READ_FUNCTION), ("mac", MAC_FUNCTION)]


class QuantizerConfig(Struct):
    _fields_ = [("struct_size", c_uint32), ("device_type", c_int32), ("dim", c_int32), ("io_dtype", c_int32),
                ("family", c_int32), ("bits", c_int32), ("rotation", c_int32), ("scale_rule", c_int32),
                ("group_size", c_int32), ("sketch", c_int32), ("sketch_rule", c_int32),
                ("sketch_factor", c_float), ("num_outliers", c_int32), ("num_threads", c_int32),
                ("outlier_channels", POINTER(c_int32)), ("seed", c_uint64), ("codebook", POINTER(Codebook)),
                ("levels", POINTER(Levels)), ("flags", c_uint64), ("allocator", POINTER(Allocator)),
                ("device_id", c_int32), ("reserved", c_int32)]


class QuantizerInfo(Struct):
    _fields_ = [("struct_size", c_uint32), ("rotated_dim", c_int32), ("code_bytes", c_int64),
                ("fingerprint", c_uint64), ("sketch_factor", c_float), ("reserved", c_uint32)]


class CalibrationConfig(Struct):
    _fields_ = [("struct_size", c_uint32), ("num_layers", c_int32), ("num_q_heads", c_int32),
                ("num_kv_heads", c_int32), ("head_dim", c_int32), ("value_dim", c_int32),
                ("io_dtype", c_int32), ("key_family", c_int32), ("value_family", c_int32),
                ("held_out_tokens", c_int32), ("turn_keys", c_int32)]


class CalibrationGoal(Struct):
    _fields_ = [("struct_size", c_uint32), ("key_bits", c_float), ("value_bits", c_int32),
                ("max_error", c_float), ("outlier", c_float)]


class CalibrationResult(Struct):
    _fields_ = [("struct_size", c_uint32), ("banded_layers", c_int32), ("raw_layers", c_int32),
                ("error", c_float), ("uniform_error", c_float), ("reserved", c_uint32),
                ("token_bytes", c_int64)]


# C name: (class, its id for tq_struct_size)
STRUCTS = {
    "tq_device_info": (DeviceInfo, "TQ_STRUCT_DEVICE_INFO"),
    "tq_levels": (Levels, "TQ_STRUCT_LEVELS"),
    "tq_codebook": (Codebook, "TQ_STRUCT_CODEBOOK"),
    "tq_allocator": (Allocator, "TQ_STRUCT_ALLOCATOR"),
    "tq_key_bands": (KeyBands, "TQ_STRUCT_KEY_BANDS"),
    "tq_layer_config": (LayerConfig, "TQ_STRUCT_LAYER_CONFIG"),
    "tq_cache_config": (CacheConfig, "TQ_STRUCT_CACHE_CONFIG"),
    "tq_cache_bytes": (CacheBytes, "TQ_STRUCT_CACHE_BYTES"),
    "tq_layer_bytes": (LayerBytes, "TQ_STRUCT_LAYER_BYTES"),
    "tq_cache_memory": (CacheMemory, "TQ_STRUCT_CACHE_MEMORY"),
    "tq_tensor_layout": (TensorLayout, "TQ_STRUCT_TENSOR_LAYOUT"),
    "tq_attend_params": (AttendParams, "TQ_STRUCT_ATTEND_PARAMS"),
    "tq_pages": (Pages, "TQ_STRUCT_PAGES"),
    "tq_page_layout": (PageLayout, "TQ_STRUCT_PAGE_LAYOUT"),
    "tq_paged_step": (PagedStep, "TQ_STRUCT_PAGED_STEP"),
    "tq_state": (State, "TQ_STRUCT_STATE"),
    "tq_io": (Io, "TQ_STRUCT_IO"),
    "tq_quantizer_config": (QuantizerConfig, "TQ_STRUCT_QUANTIZER_CONFIG"),
    "tq_quantizer_info": (QuantizerInfo, "TQ_STRUCT_QUANTIZER_INFO"),
    "tq_calibration_config": (CalibrationConfig, "TQ_STRUCT_CALIBRATION_CONFIG"),
    "tq_calibration_goal": (CalibrationGoal, "TQ_STRUCT_CALIBRATION_GOAL"),
    "tq_calibration_result": (CalibrationResult, "TQ_STRUCT_CALIBRATION_RESULT"),
}


# Handles are distinct classes, so that a batch passed where a cache belongs is a TypeError and not a crash.
class CacheHandle(c_void_p):
    pass


class BatchHandle(c_void_p):
    pass


class CodecHandle(c_void_p):
    pass


class QuantizerHandle(c_void_p):
    pass


class CalibrationHandle(c_void_p):
    pass


# name: (result, arguments). Tensors are addresses.
FUNCTIONS = {
    "tq_status_name": (c_char_p, [c_int32]),
    "tq_last_error": (c_char_p, []),
    "tq_last_error_copy": (c_int32, [c_char_p, c_size_t, POINTER(c_size_t)]),
    "tq_version": (c_char_p, []),
    "tq_abi_version": (c_int32, []),
    "tq_build_info": (c_char_p, []),
    "tq_struct_size": (c_size_t, [c_int32]),
    "tq_device_count": (c_int32, [c_int32, POINTER(c_int32)]),
    "tq_device_get_info": (c_int32, [c_int32, c_int32, POINTER(DeviceInfo)]),
    "tq_cache_config_init": (c_int32, [POINTER(CacheConfig)]),
    "tq_cache_config_check": (c_int32, [POINTER(CacheConfig), c_char_p, c_size_t]),
    "tq_cache_config_bytes": (c_int32, [POINTER(CacheConfig), POINTER(CacheBytes)]),
    "tq_cache_config_layer_bytes": (c_int32, [POINTER(CacheConfig), c_int32, POINTER(LayerBytes)]),
    "tq_cache_create": (c_int32, [POINTER(CacheConfig), c_void_p, POINTER(CacheHandle)]),
    "tq_cache_destroy": (c_int32, [CacheHandle]),
    "tq_cache_reserve": (c_int32, [CacheHandle, c_int64, c_void_p]),
    "tq_cache_get_config": (c_int32, [CacheHandle, POINTER(CacheConfig)]),
    "tq_cache_set_centres": (c_int32, [CacheHandle, c_int32, c_void_p, c_void_p]),
    "tq_cache_get_memory": (c_int32, [CacheHandle, POINTER(CacheMemory)]),
    "tq_cache_fingerprint": (c_int32, [CacheHandle, POINTER(c_uint64)]),
    "tq_cache_check": (c_int32, [CacheHandle, c_void_p, POINTER(c_uint64)]),
    "tq_sequence_create": (c_int32, [CacheHandle, POINTER(c_int64)]),
    "tq_sequence_free": (c_int32, [CacheHandle, c_int64, c_void_p]),
    "tq_sequence_fork": (c_int32, [CacheHandle, c_int64, c_void_p, POINTER(c_int64)]),
    "tq_sequence_copy": (c_int32, [CacheHandle, c_int64, CacheHandle, c_void_p, POINTER(c_int64)]),
    "tq_sequence_truncate": (c_int32, [CacheHandle, c_int64, c_int64, c_void_p]),
    "tq_sequence_flush": (c_int32, [CacheHandle, c_int64, c_void_p]),
    "tq_sequence_remove": (c_int32, [CacheHandle, c_int64, c_int64, c_int64, c_void_p]),
    "tq_sequence_select": (c_int32, [CacheHandle, c_int64, POINTER(c_int64), c_int64, c_void_p]),
    "tq_sequence_length": (c_int32, [CacheHandle, c_int64, POINTER(c_int64)]),
    "tq_sequence_flags": (c_int32, [CacheHandle, c_int64, POINTER(c_uint64)]),
    "tq_batch_create": (c_int32, [CacheHandle, POINTER(BatchHandle)]),
    "tq_batch_destroy": (c_int32, [BatchHandle]),
    "tq_batch_plan": (c_int32, [BatchHandle, c_int32, POINTER(c_int64), POINTER(c_int64), POINTER(c_int64),
        c_void_p]),
    "tq_batch_rows": (c_int32, [BatchHandle, POINTER(c_int64), POINTER(c_int64), POINTER(c_int32)]),
    "tq_cache_append": (c_int32, [CacheHandle, c_int32, BatchHandle, c_void_p, c_void_p,
        POINTER(TensorLayout), c_void_p]),
    "tq_attend_params_init": (c_int32, [POINTER(AttendParams)]),
    "tq_cache_attend": (c_int32, [CacheHandle, c_int32, BatchHandle, c_void_p, c_void_p, c_void_p,
        POINTER(AttendParams), c_void_p, c_size_t, c_void_p]),
    "tq_attend_workspace_bytes": (c_int32, [CacheHandle, POINTER(c_size_t)]),
    "tq_merge_states": (c_int32, [c_int32, POINTER(c_void_p), POINTER(c_void_p), c_int64, c_int32, c_int32,
        c_void_p, c_void_p, c_int32, c_int32, c_void_p]),
    "tq_cache_read": (c_int32, [CacheHandle, c_int32, c_int64, c_int64, c_int64, c_void_p, c_void_p,
        POINTER(TensorLayout), c_void_p]),
    "tq_codec_create": (c_int32, [POINTER(CacheConfig), c_void_p, POINTER(CodecHandle)]),
    "tq_codec_destroy": (c_int32, [CodecHandle]),
    "tq_codec_get_config": (c_int32, [CodecHandle, POINTER(CacheConfig)]),
    "tq_codec_set_centres": (c_int32, [CodecHandle, c_int32, c_void_p, c_void_p]),
    "tq_codec_fingerprint": (c_int32, [CodecHandle, POINTER(c_uint64)]),
    "tq_codec_check": (c_int32, [CodecHandle, c_void_p, POINTER(c_uint64)]),
    "tq_codec_page_layout": (c_int32, [CodecHandle, c_int32, c_int32, c_int64, c_int32,
        POINTER(PageLayout)]),
    "tq_paged_workspace_bytes": (c_int32, [CodecHandle, POINTER(PagedStep), POINTER(c_size_t)]),
    "tq_paged_plan": (c_int32, [CodecHandle, POINTER(PagedStep), c_void_p, c_size_t, c_void_p]),
    "tq_paged_append": (c_int32, [CodecHandle, c_int32, POINTER(Pages), POINTER(PagedStep), c_void_p,
        c_void_p, POINTER(TensorLayout), c_void_p, c_size_t, c_void_p]),
    "tq_paged_attend": (c_int32, [CodecHandle, c_int32, POINTER(Pages), POINTER(PagedStep), c_void_p,
        c_void_p, c_void_p, POINTER(AttendParams), c_void_p, c_size_t, c_void_p]),
    "tq_paged_read": (c_int32, [CodecHandle, c_int32, POINTER(Pages), POINTER(c_int64), c_int64, c_void_p,
        c_void_p, POINTER(TensorLayout), c_void_p]),
    "tq_paged_copy": (c_int32, [CodecHandle, c_int32, POINTER(Pages), POINTER(Pages), POINTER(c_int64),
        c_int64, c_void_p]),
    "tq_sequence_describe": (c_int32, [CacheHandle, c_int64, POINTER(State)]),
    "tq_sequence_export": (c_int32, [CacheHandle, c_int64, POINTER(State), c_void_p, c_size_t, c_void_p]),
    "tq_sequence_import": (c_int32, [CacheHandle, c_int64, POINTER(State), c_void_p, c_size_t, c_void_p]),
    "tq_sequence_save": (c_int32, [CacheHandle, c_int64, POINTER(Io), c_void_p]),
    "tq_sequence_load": (c_int32, [CacheHandle, POINTER(Io), c_void_p, POINTER(c_int64)]),
    "tq_quantizer_create": (c_int32, [POINTER(QuantizerConfig), POINTER(QuantizerHandle)]),
    "tq_quantizer_destroy": (c_int32, [QuantizerHandle]),
    "tq_quantizer_get_info": (c_int32, [QuantizerHandle, POINTER(QuantizerInfo)]),
    "tq_quantizer_encode": (c_int32, [QuantizerHandle, c_void_p, c_int64, c_void_p, POINTER(c_uint64),
        c_void_p]),
    "tq_quantizer_decode": (c_int32, [QuantizerHandle, c_void_p, c_int64, c_void_p, c_void_p]),
    "tq_quantizer_inner_products": (c_int32, [QuantizerHandle, c_void_p, c_int64, c_void_p, c_int64,
        c_void_p, c_void_p]),
    "tq_quantizer_search": (c_int32, [QuantizerHandle, c_void_p, c_int64, c_void_p, c_int64, c_void_p,
        c_int64, c_void_p, POINTER(c_int64), c_void_p]),
    "tq_quantizer_rotate": (c_int32, [QuantizerHandle, c_void_p, c_int64, c_void_p, c_void_p]),
    "tq_quantizer_unrotate": (c_int32, [QuantizerHandle, c_void_p, c_int64, c_void_p, c_void_p]),
    "tq_calibrate_sketch_factor": (c_int32, [QuantizerHandle, c_void_p, c_int64, c_void_p, c_void_p]),
    "tq_calibrate_levels": (c_int32, [QuantizerHandle, c_void_p, c_int64, c_int32, c_void_p, c_void_p,
        POINTER(c_double), c_void_p]),
    "tq_calibration_create": (c_int32, [POINTER(CalibrationConfig), POINTER(CalibrationHandle)]),
    "tq_calibration_destroy": (c_int32, [CalibrationHandle]),
    "tq_calibration_get_config": (c_int32, [CalibrationHandle, POINTER(CalibrationConfig)]),
    "tq_calibration_feed": (c_int32, [CalibrationHandle, c_int32, c_int64, c_void_p, c_void_p, c_void_p]),
    "tq_calibration_feed_from": (c_int32, [CalibrationHandle, c_int32, c_int64, c_void_p, c_void_p, c_void_p,
        c_int32, c_int32, c_void_p]),
    "tq_cache_set_key_matrix": (c_int32, [CacheHandle, c_int32, c_void_p]),
    "tq_calibration_set_key_matrix": (c_int32, [CalibrationHandle, c_int32, c_void_p]),
    "tq_calibration_choose": (c_int32, [CalibrationHandle, POINTER(CalibrationGoal), POINTER(LayerConfig),
        c_int32, POINTER(CalibrationResult)]),
    "tq_calibration_set_centres": (c_int32, [CalibrationHandle, CacheHandle]),
    "tq_calibration_centres": (c_int32, [CalibrationHandle, c_int32, c_void_p, c_void_p]),
    "tq_calibration_key_matrix": (c_int32, [CalibrationHandle, c_int32, c_void_p, POINTER(c_int32)]),
    "tq_calibration_save": (c_int32, [CalibrationHandle, POINTER(Io)]),
    "tq_calibration_load": (c_int32, [POINTER(Io), POINTER(CalibrationHandle)]),
}
