# SPDX-License-Identifier: Apache-2.0
"""vLLM's TURBOQUANT (Triton, vLLM 0.32) as a peer: v1/attention/backends/turboquant_attn.py shows how it
calls its kernels.

On NVIDIA GPUs vLLM runs the kernels with keys and values of a token side by side, 32 splits, blocks of 16.
Those with scales apart from the codes ("SoA": grouped query heads on matrix units) it chooses on AMD GPUs
alone; they run here as well and are measured: slower with 4-bit keys, faster with 8-bit ones.
"""
import enum
import importlib

import torch

from peers import Blocks, Variant, hadamard, module

NAME = "vLLM TURBOQUANT"
OPS = "v1/attention/ops/"
SOA = OPS + "turboquant_soa/"
CONFIG = "model_executor/layers/quantization/turboquant/"
FILES = tuple(OPS + name + ".py" for name in (
    "triton_turboquant_decode", "triton_turboquant_store", "triton_decode_attention",
    "triton_unified_attention", "triton_attention_helpers"))
FILES += tuple(SOA + "triton_turboquant_" + name + ".py" for name in ("decode", "decode_v2", "store",
                                                                      "unified_attention"))
FILES += (CONFIG + "config.py", CONFIG + "centroids.py")
PRESETS = {"k8v4": "turboquant_k8v4", "k4v4": "turboquant_4bit_nc", "k3v4": "turboquant_k3v4_nc",
           "k3v3": "turboquant_3bit_nc"}
# What else was tried on an H200 at B8 n32768 was slower: SoA with 32, 64 and 128 splits of k4v4 (2,676,
# 3,011, 3,668 us; 2,503 with 16), blocks of 128 (1,483), SoA with 3-bit keys (3,629, 4,126).
VARIANTS = (Variant("k4v4", (4, 4), splits=(32, 128), shipped=32), Variant("k8v4", (8, 4), True),
            Variant("k4v4", (4, 4), True, splits=(16, )), Variant("k8v4", (8, 4), shipped=32),
            Variant("k3v4", (3, 4), shipped=32), Variant("k3v3", (3, 3), shipped=32))


class Functions:
    """What is called of vLLM, by soa where there are two."""

    def __init__(self, folder):
        kinds = ("NONE", "INT4_PER_TOKEN_HEAD", "INT8_PER_TOKEN_HEAD", "FP8_PER_TOKEN_HEAD")
        module("vllm.v1.kv_cache_interface", KVQuantMode=enum.IntEnum("KVQuantMode", kinds, start=0))
        module("vllm.envs", VLLM_BATCH_INVARIANT=False)

        def load(name):
            return importlib.import_module("vllm." + name.replace("/", "."))
        aos, soa = (load(folder + "triton_turboquant_decode") for folder in (OPS, SOA))
        self.dequantize = aos._tq_full_dequant_kv, soa._tq_full_dequant_kv
        self.decode = (aos.triton_turboquant_decode_attention,
                       load(SOA + "triton_turboquant_unified_attention")
                       .triton_turboquant_decode_attention_soa)
        self.store = tuple(
            load(folder + "triton_turboquant_store").triton_turboquant_store for folder in (OPS, SOA))
        self.config = load(CONFIG + "config").TurboQuantConfig.from_cache_dtype
        self.centroids = load(CONFIG + "centroids").get_centroids


def token_bytes(functions, case, variant):
    return case.kv_heads * functions.config(PRESETS[variant.preset], case.head_dim).slot_size_aligned


class PeerBlocks(Blocks):

    def __init__(self, functions, case, variant, layers, pool, device):
        super().__init__(case, variant, layers, pool, device)
        self.functions, self.config = functions, functions.config(PRESETS[variant.preset], case.head_dim)
        self.rotation = hadamard(case.head_dim, device)
        self.levels = functions.centroids(case.head_dim, self.config.centroid_bits).float().to(device)
        ordered = self.levels.sort().values
        self.middles = (ordered[1:] + ordered[:-1]) / 2
        # [layer][block][token][head][byte]
        self.pages = torch.zeros(layers, self.num_blocks, variant.block, case.kv_heads,
                                 self.config.slot_size_aligned, dtype=torch.uint8, device=device)
        self.widths = dict(mse_bits=self.config.key_mse_bits, key_packed_size=self.config.key_packed_size,
                           value_quant_bits=self.config.effective_value_quant_bits,
                           key_fp8=self.config.key_fp8)

    def put(self, layer, sequence, keys, values):
        block, token = self.variant.block, torch.arange(self.case.tokens, device=self.device)
        slots = self.table[sequence].long()[token // block] * block + token % block
        more = dict(centroids=self.levels,
                    norm_correction=self.config.norm_correction) if self.variant.soa else {}
        self.functions.store[self.variant.soa](keys, values, self.pages[layer], slots, PiT=self.rotation,
                                               midpoints=self.middles, **self.widths, **more)

    def buffers(self, splits):
        """What the backend takes from its workspace manager, one for all layers."""
        batch, heads, dim = self.case.batch, self.case.q_heads, self.case.head_dim
        return dict(
            mid_o_buf=torch.empty(batch, heads, splits, dim + 1, dtype=torch.float32, device=self.device),
            output_buf=torch.full((batch, heads, dim), float("nan"), dtype=torch.float16, device=self.device),
            lse_buf=torch.empty(batch, heads, dtype=torch.float32, device=self.device))

    def decode(self, layer, q, splits, buffers):
        more = dict(value_packed_size=self.config.value_packed_size,
                    max_seq_len=self.case.tokens) if self.variant.soa else {}
        return self.functions.decode[self.variant.soa](
            q, self.pages[layer], self.table, self.lengths, Pi=self.rotation, centroids=self.levels,
            scale=self.case.head_dim ** -0.5, norm_correction=self.config.norm_correction, PiT=self.rotation,
            max_num_kv_splits=splits, **self.widths, **buffers, **more)

    def _decoded(self, layer, sequence):
        """Keys and values [token][head][d] in float64 as vLLM's kernel decodes them (to float16)."""
        case, config, block, pages = self.case, self.config, self.variant.block, self.pages[layer]
        k, v = (torch.full((1, case.kv_heads, self.table.shape[1] * block, case.head_dim), float("nan"),
                           dtype=torch.float16, device=self.device) for _ in "kv")
        code_bytes = case.head_dim if config.key_fp8 else case.head_dim * config.key_mse_bits // 8
        value_bytes = case.head_dim * config.effective_value_quant_bits // 8
        settings = dict(HEAD_DIM=case.head_dim, BLOCK_SIZE=block, NUM_KV_HEADS=case.kv_heads,
                        MSE_BYTES=code_bytes, VQB=config.effective_value_quant_bits,
                        VAL_DATA_BYTES=value_bytes, MSE_BITS=config.key_mse_bits,
                        KEY_FP8=int(config.key_fp8), BLOCK_D=case.head_dim,
                        NORM_CORRECTION=int(config.norm_correction), num_warps=4)
        table = self.table[sequence:sequence + 1]
        strides = *k.stride()[:3], *v.stride()[:3]
        grid = (k.shape[2], case.kv_heads)
        run = self.functions.dequantize[self.variant.soa][grid]
        if self.variant.soa:
            keyed = 0 if config.key_fp8 else 1
            run(pages, pages.view(torch.uint16), table, self.levels, k, v, *strides, pages.stride(0),
                table.stride(0), KEY_DATA_BYTES=code_bytes, NUM_SOA_FIELDS=2 + keyed, SOA_K_NORM=0,
                SOA_V_SCALE=keyed, SOA_V_ZERO=1 + keyed,
                META_REGION_OFFSET=block * case.kv_heads * (code_bytes + value_bytes), **settings)
        else:
            run(pages, table, self.levels, k, v, *strides, *pages.stride()[:3], table.stride(0),
                KPS=config.key_packed_size, **settings)
        k, v = (x[0, :, :case.tokens].transpose(0, 1).double() for x in (k, v))
        return k if config.key_fp8 else k @ self.rotation.double(), v
