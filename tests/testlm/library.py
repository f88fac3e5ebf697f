# SPDX-License-Identifier: Apache-2.0
"""The few calls of libtqkv that the test model needs, through ctypes: a cache as an attention function for
model.Model.logits.

All positions of a sequence are appended to a layer before its queries attend, the own token included. Without
window and sinks what a query reads is codes only. Struct layouts follow include/tqkv.h and are compared with
tq_struct_size at load time.
"""
import ctypes
import os
from pathlib import Path

import numpy as np

RULES = {"default": 0, "ls": 1, "unbiased": 2, "norm": 3, "paper": 4}
FAMILIES = {"scalar": 1, "trellis": 5}
F32 = 1
NO_SCALE_SEARCH = 2
LATENT, LATENT_REST = 2, 8


class CacheConfig(ctypes.Structure):
    _fields_ = ([("struct_size", ctypes.c_uint32)] +
                [(name, ctypes.c_int32)
                 for name in ("device_type", "device_id", "num_layers", "num_q_heads", "num_kv_heads",
                              "head_dim", "value_dim", "io_dtype", "key_bits", "value_bits", "code_family")] +
                [("layer_key_bits", ctypes.c_void_p), ("layer_value_bits", ctypes.c_void_p)] +
                [(name, ctypes.c_int32)
                 for name in ("rotation", "key_scale_rule", "value_scale_rule", "page_size")] +
                [("rotation_seed", ctypes.c_uint64), ("first_layer", ctypes.c_int32),
                 ("first_kv_head", ctypes.c_int32), ("key_codebook", ctypes.c_void_p),
                 ("value_codebook", ctypes.c_void_p)] + [("max_tokens", ctypes.c_int64),
                                                         ("max_reserve_tokens", ctypes.c_int64),
                                                         ("max_sequence_tokens", ctypes.c_int64),
                                                         ("max_sequences", ctypes.c_int32),
                                                         ("max_batch_sequences", ctypes.c_int32),
                                                         ("max_batch_tokens", ctypes.c_int64),
                                                         ("max_raw_tokens", ctypes.c_int64)] +
                [(name, ctypes.c_int32)
                 for name in ("window_tokens", "sink_tokens", "rollback_tokens", "num_threads")] +
                [("flags", ctypes.c_uint64), ("allocator", ctypes.c_void_p), ("pool", ctypes.c_void_p),
                 ("pool_bytes", ctypes.c_int64), ("layers", ctypes.c_void_p)] +
                [(name, ctypes.c_int32)
                 for name in ("key_family", "value_family", "group_size", "sketch", "sketch_rule")] +
                [("sketch_factor", ctypes.c_float), ("key_levels", ctypes.c_void_p),
                 ("value_levels", ctypes.c_void_p), ("layer_kind", ctypes.c_int32),
                 ("reserved", ctypes.c_uint32)])


def find_library():
    """TQKV_LIBRARY, or the newest libtqkv.so of a build folder of this checkout; None if there is none."""
    named = os.environ.get("TQKV_LIBRARY")
    if named:
        return named
    root = Path(__file__).resolve().parents[2]
    found = [
        path for folder in root.glob("build*")
        for path in (folder / "libtqkv.so", folder / "lib" / "libtqkv.so") if path.exists()
    ]
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else None


class Library:
    def __init__(self, path):
        self.dll = ctypes.CDLL(path)
        self.dll.tq_last_error.restype = ctypes.c_char_p
        self.dll.tq_build_info.restype = ctypes.c_char_p
        self.dll.tq_status_name.restype = ctypes.c_char_p
        self.dll.tq_struct_size.restype = ctypes.c_size_t
        size = self.dll.tq_struct_size(1)
        assert size == ctypes.sizeof(
            CacheConfig), f"tq_cache_config: library {size} bytes, binding {ctypes.sizeof(CacheConfig)}"

    def call(self, name, *arguments):
        status = getattr(self.dll, name)(*arguments)
        if status != 0:
            raise RuntimeError(
                f"{name}: {self.dll.tq_status_name(status).decode()}: {self.dll.tq_last_error().decode()}")

    def build_info(self):
        return self.dll.tq_build_info().decode()


class AttendParams(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("out_dtype", ctypes.c_int32),
                ("softmax_scale", ctypes.c_float)]


class CacheAttention:
    """One sequence of `tokens` positions in a fresh cache; call with (layer, q, k, v), each layer once.

    latent: layers are latent ones, whose tokens are [k | v] of a kv head and LATENT_REST zeros behind them,
    so that scores and values both come from the latent's one set of codes; queries are zero where v stands,
    and of the output the part of v is taken."""

    def __init__(self,
                 library,
                 model,
                 tokens,
                 bits,
                 key_rule,
                 value_rule,
                 search,
                 seed=0,
                 centres=None,
                 threads=0,
                 window=0,
                 sinks=0,
                 latent=False,
                 family="scalar"):
        self.library, self.latent, self.scale = library, latent, 1 / np.sqrt(model.head_dim)
        config = CacheConfig()
        library.call("tq_cache_config_init", ctypes.byref(config))
        config.num_layers = model.layers
        config.num_q_heads, config.num_kv_heads = model.q_heads, model.kv_heads
        config.head_dim, config.io_dtype = model.head_dim, F32
        config.key_bits = config.value_bits = bits
        config.code_family = FAMILIES[family]
        if latent:
            config.layer_kind, config.value_dim = LATENT, 2 * model.head_dim
            config.head_dim = config.value_dim + LATENT_REST
        config.key_scale_rule, config.value_scale_rule = RULES[key_rule], RULES[value_rule]
        config.rotation_seed, config.max_tokens, config.num_threads = seed, tokens, threads
        config.flags = 0 if search else NO_SCALE_SEARCH
        config.window_tokens, config.sink_tokens = window, sinks
        self.cache, self.batch = ctypes.c_void_p(), ctypes.c_void_p()
        library.call("tq_cache_create", ctypes.byref(config), None, ctypes.byref(self.cache))
        for layer in range(model.layers if centres else 0):
            key, value = (np.ascontiguousarray(side[layer], np.float32) for side in centres)
            library.call("tq_cache_set_centres", self.cache, ctypes.c_int32(layer), pointer(key),
                         pointer(value))
        sequence = ctypes.c_int64()
        library.call("tq_sequence_create", self.cache, ctypes.byref(sequence))
        library.call("tq_batch_create", self.cache, ctypes.byref(self.batch))
        count = ctypes.c_int64(tokens)
        library.call("tq_batch_plan", self.batch, ctypes.c_int32(1), ctypes.byref(sequence),
                     ctypes.byref(count), None, None)

    def __call__(self, layer, q, k, v):
        q, k, v = (np.ascontiguousarray(side, np.float32) for side in (q, k, v))
        if self.latent:
            return self.attend_latent(layer, q, k, v)
        out = np.empty((q.shape[0], q.shape[1], v.shape[2]), np.float32)
        layer = ctypes.c_int32(layer)
        self.library.call("tq_cache_append", self.cache, layer, self.batch, pointer(k), pointer(v), None,
                          None)
        self.library.call("tq_cache_attend", self.cache, layer, self.batch, pointer(q), pointer(out), None,
                          None, None, ctypes.c_size_t(0), None)
        return out

    def attend_latent(self, layer, q, k, v):
        rest = np.zeros((*k.shape[:2], LATENT_REST), np.float32)
        queries = np.concatenate([q, np.zeros((*q.shape[:2], v.shape[2] + LATENT_REST), np.float32)], axis=2)
        keys, layer = np.concatenate([k, v, rest], axis=2), ctypes.c_int32(layer)
        out = np.empty((*q.shape[:2], k.shape[2] + v.shape[2]), np.float32)
        params = AttendParams(ctypes.sizeof(AttendParams), 0, self.scale)
        self.library.call("tq_cache_append", self.cache, layer, self.batch, pointer(keys), None, None, None)
        self.library.call("tq_cache_attend", self.cache, layer, self.batch, pointer(queries), pointer(out),
                          None, ctypes.byref(params), None, ctypes.c_size_t(0), None)
        return out[..., k.shape[2]:]

    def close(self):
        self.library.call("tq_batch_destroy", self.batch)
        self.library.call("tq_cache_destroy", self.cache)


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)
