# SPDX-License-Identifier: Apache-2.0
"""OSCAR (Triton; github.com/FutureMLS-Lab/OSCAR, a fork of SGLang) as a peer: srt/layers/attention/
triton_backend.py of its sglang-research shows how it calls its kernels.

A token is a slot; keys and values have two bits a number, and a scale and a zero a group. Its rotation is the
model's affair (folded into weights, or done before the store), and so is not timed here; its sinks and recent
tokens in 16 bits are left out, which is in its favour.
"""
import importlib
import math

import torch

from peers import Blocks, Variant, module

NAME = "OSCAR"
PACKAGE = "sglang"
ATTENTION, STORE = "srt/layers/attention/triton_ops/decode_attention", "srt/mem_cache/kv_quant_kernels"
FILES = (ATTENTION + ".py", STORE + ".py")
# splits 0: as SGLang decides, of SHIPPED_SPLITS at most (its default)
VARIANTS = (Variant("int2", (2, 2), block=64, splits=(0, 32, 64), shipped=0), )
SHIPPED_SPLITS = 8


class Functions:

    def __init__(self, folder):
        module("sglang.srt.utils", is_hip=lambda: False)
        module("sglang.srt.environ", envs=None)

        def load(name):
            return importlib.import_module("sglang." + name.replace("/", "."))
        self.decode = load(ATTENTION).decode_attention_fwd_quantized
        store = load(STORE)
        self.store, self.dequantize = store.quantized_set_kv_int2_triton, store.dequantize_kv_int2_triton


def token_bytes(functions, case, variant):
    """Codes, and a scale and a zero in 16 bits, of keys and of values."""
    return case.kv_heads * 2 * (case.head_dim // 4 + 4)


def shipped_splits(case, units):
    """What get_num_kv_splits_triton gives equal lengths."""
    grid = case.batch * math.ceil(case.q_heads / min(16, case.q_heads // case.kv_heads))
    most = min(math.ceil(int(units * max(math.log2(case.tokens / 64), 1)) / grid), SHIPPED_SPLITS)
    return math.ceil(case.tokens / math.ceil(case.tokens / most))


class PeerBlocks(Blocks):

    def __init__(self, functions, case, variant, layers, pool, device):
        super().__init__(case, variant, layers, pool, device)
        self.functions = functions
        slots = self.num_blocks * variant.block

        def empty(last, dtype):  # [keys, values][layer][slot][head]
            return torch.zeros(2, layers, slots, case.kv_heads, last, dtype=dtype, device=device)
        self.codes, self.scales = empty(case.head_dim // 4, torch.uint8), empty(2, torch.bfloat16)
        token = torch.arange(case.tokens, device=device)
        self.slots = self.table.long()[:, token // variant.block] * variant.block + token % variant.block
        self.starts = torch.arange(case.batch + 1, dtype=torch.int32, device=device) * case.tokens
        self.units = torch.cuda.get_device_properties(device).multi_processor_count if device == "cuda" else 8

    def put(self, layer, sequence, keys, values):
        self.functions.store(keys, values, self.slots[sequence], self.codes[0, layer], self.codes[1, layer],
                             self.scales[0, layer], self.scales[1, layer])

    def buffers(self, splits):
        case, most = self.case, splits or SHIPPED_SPLITS
        splits = splits or shipped_splits(case, self.units)
        parts = case.batch, case.q_heads, most
        return dict(
            o=torch.full((case.batch, case.q_heads, case.head_dim), float("nan"), dtype=torch.float16,
                         device=self.device), kv_indptr=self.starts, kv_indices=self.slots.reshape(-1),
            attn_logits=torch.empty(*parts, case.head_dim, dtype=torch.float32, device=self.device),
            attn_lse=torch.empty(*parts, dtype=torch.float32, device=self.device),
            num_kv_splits=torch.full((case.batch, ), splits, dtype=torch.int32, device=self.device),
            max_kv_splits=most)

    def decode(self, layer, q, splits, buffers):
        self.functions.decode(q, self.codes[0, layer], self.codes[1, layer], self.scales[0, layer],
                              self.scales[1, layer], **buffers, sm_scale=self.case.head_dim ** -0.5,
                              kv_dtype="int2")
        return buffers["o"]

    def _decoded(self, layer, sequence):
        slots = self.slots[sequence]
        return [self.functions.dequantize(self.codes[i, layer, slots], self.scales[i, layer, slots],
                                          self.case.head_dim, torch.float32).double() for i in range(2)]
