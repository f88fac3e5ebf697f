# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's XQA decode on FP8 caches (CUDA C++; flashinfer-python 0.7.4, Apache-2.0) as a peer: its xqa.py
shows how it calls its kernel, jit/xqa.py how it compiles it.

`peers.py collect FLASHINFER DIR`, FLASHINFER being the folder of the installed package, compiles the kernel
for one shape (head_dim 128, 4 query heads to a kv head, pages of 64 tokens, compute capability 9.0) with the
nvcc that NVCC names. Queries and weights are rounded to FP8 as well, so its output is farther from attention
in float64 than others' (GATE).
"""
import ctypes
import os
import shutil
import subprocess

import torch

from peers import Blocks, Variant

NAME, PACKAGE = "FlashInfer XQA", "flashinfer"
FILES = ("libpeer_xqa.so", )
# splits 0: as it decides by the multiprocessors that it is told of; the others are told more
VARIANTS = (Variant("fp8", (8, 8), block=64, splits=(0, 4, 8, 16), shipped=0), )
# Queries and weights keep 3 bits of mantissa, off by 2^-4 at most and by 2^-5.3 root mean square each: 3.6 %
# of the output together, and the worst of some hundred rows of 128 numbers a third more.
GATE = 0.06
HEAD_DIM, GROUP = 128, 4
FLAGS = ("NDEBUG=1 BEAM_WIDTH=1 USE_INPUT_KV=0 USE_CUSTOM_BARRIER=1 TOKENS_PER_PAGE=64 HEAD_ELEMS=128 "
         "INPUT_FP16=1 DTYPE=__half CACHE_ELEM_ENUM=2 HEAD_GRP_SIZE=4 SLIDING_WINDOW=0 LOW_PREC_OUTPUT=0 "
         "SPEC_DEC=0 MLA_WRAPPER=0 USE_SM90_MHA=1").split()


def collect(folder, to):
    """Compiles. Some minutes."""
    sources = os.path.join(folder, "data", "csrc", "xqa")
    if not os.path.isdir(sources):
        return print(f"{NAME}: {folder} lacks data/csrc/xqa")
    os.makedirs(to, exist_ok=True)
    here, nvcc = os.path.dirname(os.path.abspath(__file__)), os.environ.get("NVCC", "nvcc")
    toolkit = os.path.dirname(os.path.dirname(os.path.realpath(shutil.which(nvcc) or nvcc)))
    files = [os.path.join(here, "peer_xqa.cu"), *(os.path.join(sources, name)
                                                  for name in ("mha_sm90.cu", "tensorMap.cpp"))]
    subprocess.run([nvcc, "-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC",
                    "-gencode", "arch=compute_90a,code=sm_90a", "--expt-relaxed-constexpr",
                    "-static-global-template-stub=false", "-I", sources, *(f"-D{flag}" for flag in FLAGS),
                    f"-L{toolkit}/lib", "-x", "cu", *files, "-o", os.path.join(to, FILES[0])], check=True)
    print(f"{NAME}: {FILES[0]} in {to}")


class Functions:

    def __init__(self, folder):
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)  # which the kernel's host code calls
        torch.cuda.init()
        self.decode = ctypes.CDLL(os.path.join(folder, FILES[0])).tq_peer_xqa
        number, address = ctypes.c_uint32, ctypes.c_void_p
        self.decode.argtypes = 4 * [number] + 6 * [address] + 3 * [ctypes.c_uint64] + 3 * [address]
        self.decode.restype = None


def token_bytes(functions, case, variant):
    return 2 * case.kv_heads * case.head_dim


class PeerBlocks(Blocks):

    def __init__(self, functions, case, variant, layers, pool, device):
        super().__init__(case, variant, layers, pool, device)
        if (case.head_dim, case.q_heads // case.kv_heads) != (HEAD_DIM, GROUP):
            raise ValueError(f"head_dim {case.head_dim}, {case.q_heads // case.kv_heads} query heads per kv "
                             f"head: compiled for {HEAD_DIM} and {GROUP}")
        self.functions, self.units = functions, torch.cuda.get_device_properties(device).multi_processor_count
        # [keys, values][layer][page][kv head][token][d]
        self.pages = torch.zeros(2, layers, self.num_blocks, case.kv_heads, variant.block, case.head_dim,
                                 dtype=torch.float8_e4m3fn, device=device)

    def put(self, layer, sequence, keys, values):
        block, table = self.variant.block, self.table[sequence].long()
        for side, rows in enumerate((keys, values)):
            rows = torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, len(table) * block - len(rows)))
            pages = rows.view(len(table), block, *rows.shape[1:]).transpose(1, 2).to(torch.float8_e4m3fn)
            self.pages[side, layer].view(torch.uint8)[table] = pages.contiguous().view(torch.uint8)

    def buffers(self, splits):
        """It makes units * 3 / 4 / (batch * kv_heads) pieces. Semaphores are 0 before and after a call."""
        case = self.case
        return dict(
            units=splits * case.batch * case.kv_heads * 4 // 3 if splits else self.units,
            out=torch.full((case.batch, case.q_heads, case.head_dim), float("nan"), dtype=torch.float16,
                           device=self.device),
            semaphores=torch.zeros(2 * case.batch * case.kv_heads + 4, dtype=torch.int32, device=self.device),
            scratch=torch.zeros(256 << 20, dtype=torch.uint8, device=self.device))

    def decode(self, layer, q, splits, buffers):
        case, (k, v) = self.case, self.pages[:, layer]
        self.functions.decode(buffers["units"], case.kv_heads, case.batch,
                              self.table.shape[1] * self.variant.block, buffers["out"].data_ptr(),
                              q.data_ptr(), k.data_ptr(), v.data_ptr(), self.table.data_ptr(),
                              self.lengths.data_ptr(), k.stride(0), k.stride(2), k.stride(1),
                              buffers["semaphores"].data_ptr(), buffers["scratch"].data_ptr(),
                              torch.cuda.current_stream().cuda_stream)
        return buffers["out"]

    def _decoded(self, layer, sequence):
        pages = self.pages[:, layer].view(torch.uint8)[:, self.table[sequence].long()]
        rows = pages.view(torch.float8_e4m3fn).transpose(2, 3).flatten(1, 2)
        return [side[:self.case.tokens].double() for side in rows]
