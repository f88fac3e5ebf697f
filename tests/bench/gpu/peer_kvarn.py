# SPDX-License-Identifier: Apache-2.0
"""KVarN (Triton; github.com/huawei-csl/KVarN, Apache-2.0, a fork of vLLM) as a peer:
v1/attention/backends/kvarn_attn.py shows how it calls its kernels.

A block of 128 tokens is a tile, normalised along both axes and rounded; the first block of a sequence stays
in float16 in a pool beside, as its backend leaves it. KVarN chooses between one pass and splits by itself;
both are measured.
"""
import importlib
import os
import types
from unittest import mock

import torch

from peers import Blocks, Variant, hadamard, module

NAME = "KVarN"
OPS = "v1/attention/ops/"
CONFIG = "model_executor/layers/quantization/kvarn/"
FILES = (OPS + "kvarn_decode.py", OPS + "kvarn_store.py", OPS + "triton_kvarn_decode.py",
         OPS + "triton_kvarn_sinkhorn.py", CONFIG + "config.py", CONFIG + "sinkhorn.py")
# splits 0: as KVarN decides
VARIANTS = (Variant("k4v2", (4, 2), block=128, splits=(0, 64), shipped=0),
            Variant("k4v4", (4, 4), block=128, splits=(0, ), shipped=0))


class Functions:

    def __init__(self, folder):
        def load(name):
            return importlib.import_module("vllm." + name.replace("/", "."))
        module("vllm.v1.attention.backends", "")
        module("vllm.v1.attention.backends.fa_utils", flash_attn_varlen_func=None)  # of a path not taken
        self.config = load(CONFIG + "config").KVarNConfig.from_cache_dtype
        self.decode = load(OPS + "triton_kvarn_decode").kvarn_decode_attention
        self.normalise = load(OPS + "triton_kvarn_sinkhorn").kvarn_sinkhorn_triton
        self.store, self.dequantize = load(OPS + "kvarn_store"), load(OPS + "kvarn_decode")


def preset(variant):
    return f"kvarn_{variant.preset}_g{variant.block}"


def token_bytes(functions, case, variant):
    config = functions.config(preset(variant), case.head_dim)
    return case.kv_heads * config.tile_bytes_aligned // config.group


class PeerBlocks(Blocks):

    def __init__(self, functions, case, variant, layers, pool, device):
        super().__init__(case, variant, layers, pool, device)
        if case.tokens % variant.block:
            raise ValueError(f"{case.tokens} tokens: only whole blocks of {variant.block} are measured")
        self.functions, self.config = functions, functions.config(preset(variant), case.head_dim)
        self.rotation = hadamard(case.head_dim, device).half()
        self.pages = torch.zeros(layers, self.num_blocks, case.kv_heads, self.config.tile_bytes_aligned,
                                 dtype=torch.uint8, device=device)
        # [layer][slot][token][head][d]: keys and values of the first block of each sequence, rotated
        self.exact = torch.zeros(2, layers, case.batch, variant.block, case.kv_heads, case.head_dim,
                                 dtype=torch.float16, device=device)
        self.slots = torch.full((self.num_blocks, ), -1, dtype=torch.int32, device=device)
        self.slots[self.table[:, 0].long()] = torch.arange(case.batch, dtype=torch.int32, device=device)

    def put(self, layer, sequence, keys, values):
        case, config, block = self.case, self.config, self.variant.block
        k, v = ((x @ self.rotation).view(-1, block, case.kv_heads, case.head_dim) for x in (keys, values))
        self.exact[0, layer, sequence], self.exact[1, layer, sequence] = k[0], v[0]
        k = k[1:].float().permute(0, 2, 3, 1).reshape(-1, case.head_dim, block)
        v = v[1:].float().permute(0, 2, 1, 3).reshape(-1, block, case.head_dim)
        stored = (self.functions.store.kvarn_store_tile_k_batch_from_sinkhorn(
            *self.functions.normalise(k, iterations=config.sinkhorn_iters), bits=config.key_bits),
                  self.functions.store.kvarn_store_tile_v_batch_from_sinkhorn(
                      *self.functions.normalise(v, iterations=config.sinkhorn_iters), bits=config.value_bits))
        record = torch.zeros(len(k), config.tile_bytes_aligned, dtype=torch.uint8, device=self.device)
        for offset, name, one in self._fields():
            part = stored[one][name].contiguous().view(torch.uint8).reshape(len(k), -1)
            record[:, offset:offset + part.shape[1]] = part
        blocks = self.table[sequence, 1:].long()
        self.pages[layer, blocks] = record.view(len(blocks), case.kv_heads, -1)

    def _fields(self):
        """(offset in a tile, name, 0 of keys or 1 of values)."""
        c = self.config
        return ((c.k_packed_offset, "q_packed_uint8", 0), (c.k_s_col_offset, "s_col_K", 0),
                (c.k_zp_offset, "zp_K", 0), (c.k_s_row_offset, "s_row_K", 0),
                (c.v_packed_offset, "q_packed_uint8", 1), (c.v_s_col_offset, "s_col_V", 1),
                (c.v_s_row_offset, "s_row_V", 1), (c.v_zp_offset, "zp_V", 1))

    def buffers(self, splits):
        case, most = self.case, max(splits, 64)
        rows = case.batch * case.q_heads

        def empty(*shape, dtype=torch.float16):
            return torch.empty(*shape, case.head_dim, dtype=dtype, device=self.device)
        return types.SimpleNamespace(
            _H_fp16=self.rotation, _q_rot_fp16_buf=empty(rows), _fused_out_buf=empty(rows),
            _block_to_slot_t=self.slots, _block_lookup_size=self.num_blocks, sliding_window=0,
            _mid_o_buf=empty(rows, most, dtype=torch.float32),
            _mid_lse_buf=torch.empty(rows, most, dtype=torch.float32, device=self.device))

    def decode(self, layer, q, splits, buffers):
        chosen = {} if splits == 0 else {"KVARN_SPLIT_K": str(int(splits > 1)),
                                         "KVARN_NUM_KV_SPLITS": str(splits)}
        buffers._tail_K_pool, buffers._tail_V_pool = self.exact[0, layer], self.exact[1, layer]
        step = types.SimpleNamespace(block_table=self.table, seq_lens=self.lengths,
                                     fa_max_blocks_per_req=self.table.shape[1])
        with mock.patch.dict(os.environ, chosen):
            return self.functions.decode(q, self.pages[layer], None, self.case.head_dim ** -0.5, self.config,
                                         buffers, step)

    def checked(self):
        return [self.case.batch - 1]  # KVarN decodes tile by tile, which takes its time

    def _decoded(self, layer, sequence):
        case, config, block = self.case, self.config, self.variant.block
        k, v = (self.exact[i, layer, sequence].double()[None].repeat(self.table.shape[1], 1, 1, 1)
                for i in range(2))
        for number in range(1, self.table.shape[1]):
            tiles = self.pages[layer, int(self.table[sequence, number])]
            for head, tile in enumerate(tiles):
                part = {(name, one): tile[offset:] for offset, name, one in self._fields()}

                def numbers(name, one, count):
                    return part[name, one][:2 * count].view(torch.float16)
                codes = (part["q_packed_uint8", 0][:config.k_packed_bytes].view(case.head_dim, -1),
                         part["q_packed_uint8", 1][:config.v_packed_bytes].view(block, -1))
                k[number, :, head] = self.functions.dequantize.kvarn_dequant_tile_k(
                    codes[0], numbers("s_col_K", 0, case.head_dim), numbers("zp_K", 0, case.head_dim),
                    numbers("s_row_K", 0, block), group=block, bits=config.key_bits).T
                v[number, :, head] = self.functions.dequantize.kvarn_dequant_tile_v(
                    codes[1], numbers("s_col_V", 1, case.head_dim), numbers("s_row_V", 1, block),
                    numbers("zp_V", 1, block), head_dim=case.head_dim, bits=config.value_bits)
        return [x.view(case.tokens, case.kv_heads, -1) @ self.rotation.double() for x in (k, v)]
