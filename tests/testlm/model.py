# SPDX-License-Identifier: Apache-2.0
"""A plain NumPy (float32) forward pass of the byte-level Llama test model.

Method: RMSNorm, rotary positions in the rotate_half convention of transformers (pairs are (i, i + dim/2)),
grouped-query attention with biases on q, k, v and o, SwiGLU, tied embeddings. Attention is a function handed
in, called once a layer with q [tokens, q heads, dim], k and v [tokens, kv heads, dim] after RoPE, so that an
exact one and one through the library can be compared. Why not transformers: the test then needs NumPy alone,
and every step of the protocol can be read here.
"""
import json
import os
import struct

import numpy as np

DTYPES = {"I8": np.int8, "U8": np.uint8, "F16": np.float16, "F32": np.float32}


def read_safetensors(path):
    """All tensors of a safetensors file as a dict of NumPy arrays (the dtypes that the test files use)."""
    with open(path, "rb") as file:
        raw = file.read()
    (size,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        data = np.frombuffer(raw[8 + size + begin : 8 + size + end], DTYPES[entry["dtype"]])
        tensors[name] = data.reshape(entry["shape"])
    return tensors


def exact_attention(layer, q, k, v, block=256):
    """softmax(q . k^T / sqrt(dim)) . v, causal, float32; in blocks of queries so that only the lower triangle
    is computed."""
    del layer
    tokens, heads, dim = q.shape
    group = heads // k.shape[1]
    out = np.empty((tokens, heads, v.shape[2]), np.float32)
    for head in range(heads):
        keys = np.ascontiguousarray(k[:, head // group])
        values = np.ascontiguousarray(v[:, head // group])
        queries = q[:, head] * np.float32(1 / np.sqrt(dim))
        for first in range(0, tokens, block):
            last = min(first + block, tokens)
            logits = queries[first:last] @ keys[:last].T
            rows = np.arange(first, last)[:, None]
            logits[np.arange(last)[None, :] > rows] = -np.inf
            logits -= logits.max(axis=1, keepdims=True)
            np.exp(logits, out=logits)
            logits /= logits.sum(axis=1, keepdims=True)
            out[first:last, head] = logits @ values[:last]
    return out


def round_to_bfloat16(x):
    """Nearest even, as float32. The test model was trained with its RoPE frequencies in bfloat16, as
    model.to(torch.bfloat16) leaves them: so computed, keys, queries and values of kv_capture.safetensors come
    out to 0.4-1 % (its own bfloat16 arithmetic) in every layer; with frequencies of full precision keys miss
    by 13-25 %, queries by 28-48 %."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def rms_norm(x, weight, epsilon):
    return x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(epsilon)) * weight


class Model:
    def __init__(self, folder):
        with open(os.path.join(folder, "config.json")) as file:
            self.config = json.load(file)
        raw = read_safetensors(os.path.join(folder, "weights.safetensors"))
        self.weights = {}
        for name, tensor in raw.items():
            if name.endswith(".scale"):
                continue
            scale = raw.get(name + ".scale")
            value = tensor.astype(np.float32)
            self.weights[name.removeprefix("model.")] = value * scale[:, None] if scale is not None else value
        self.layers = self.config["num_hidden_layers"]
        self.q_heads = self.config["num_attention_heads"]
        self.kv_heads = self.config["num_key_value_heads"]
        self.head_dim = self.config["head_dim"]

    def rope_tables(self, tokens):
        half = self.head_dim // 2
        theta = self.config["rope_parameters"]["rope_theta"]
        frequency = round_to_bfloat16(theta ** (-np.arange(half, dtype=np.float64) / half)).astype(np.float64)
        angle = np.arange(tokens, dtype=np.float64)[:, None] * frequency[None, :]
        return np.cos(angle).astype(np.float32)[:, None, :], np.sin(angle).astype(np.float32)[:, None, :]

    @staticmethod
    def rotate(x, cos, sin):
        half = x.shape[2] // 2
        low, high = x[..., :half], x[..., half:]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=2)

    def project(self, x, name):
        weight = self.weights[name + ".weight"]
        bias = self.weights.get(name + ".bias")
        product = x @ weight.T
        return product if bias is None else product + bias

    def logits(self, tokens, attention=exact_attention):
        """Next-byte logits [tokens, 256] of one sequence of bytes."""
        count = len(tokens)
        epsilon = self.config["rms_norm_eps"]
        cos, sin = self.rope_tables(count)
        x = self.weights["embed_tokens.weight"][tokens]
        for layer in range(self.layers):
            prefix = f"layers.{layer}."
            h = rms_norm(x, self.weights[prefix + "input_layernorm.weight"], epsilon)
            q = self.project(h, prefix + "self_attn.q_proj").reshape(count, self.q_heads, self.head_dim)
            k = self.project(h, prefix + "self_attn.k_proj").reshape(count, self.kv_heads, self.head_dim)
            v = self.project(h, prefix + "self_attn.v_proj").reshape(count, self.kv_heads, self.head_dim)
            attended = attention(layer, self.rotate(q, cos, sin), self.rotate(k, cos, sin), v)
            x = x + self.project(attended.reshape(count, -1), prefix + "self_attn.o_proj")
            h = rms_norm(x, self.weights[prefix + "post_attention_layernorm.weight"], epsilon)
            gate = self.project(h, prefix + "mlp.gate_proj")
            gate = gate / (1 + np.exp(-gate))
            x = x + self.project(gate * self.project(h, prefix + "mlp.up_proj"), prefix + "mlp.down_proj")
        return rms_norm(x, self.weights["norm.weight"], epsilon) @ self.weights["embed_tokens.weight"].T
