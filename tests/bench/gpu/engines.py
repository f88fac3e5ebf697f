# SPDX-License-Identifier: Apache-2.0
"""What an engine sees: tokens a second and device memory of Hugging Face Transformers on one GPU, by cache,
for a model with the shape of Llama-3.1-8B and random weights in bfloat16. `bench.py --cases engines`.

The history is random keys and values, put into each cache as its own code would put a prompt there; then
whole forward passes of one token a row are timed by the clock, the host's work included. A cache that does
not fit says so. Prefill: one forward pass of a prompt.
"""
import importlib
import json
import statistics
import time

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

import cases
import gpu
import tqkv
from tqkv.transformers import TurboCache

SHAPE = dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
             num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=1 << 18)
DECODE = ((1, 4096), (1, 32768), (1, 131072), (16, 4096), (16, 32768), (32, 32768))  # rows, tokens of each
PREFILL = (8192, 32768)
STEPS, WARM = 12, 3
QUANTIZED = "QuantizedCache 4-bit"  # on hqq, if it is installed and Transformers still has it
TURBO = {"TurboCache 4-bit": dict(preset="turboquant-s3"), "TurboCache 2-bit": dict(key_bits=2, value_bits=2)}


def made_model():
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(LlamaConfig(**SHAPE), dtype=torch.bfloat16)
    return model.eval()


def tokens(rows, count=1):
    return torch.randint(0, SHAPE["vocab_size"], (rows, count), device="cuda")


def made_cache(name, model, rows, length):
    if name == "DynamicCache":
        return DynamicCache(config=model.config)
    if name == "StaticCache":
        return StaticCache(config=model.config, max_cache_len=length)
    if name == QUANTIZED:
        from transformers.cache_utils import QuantizedCache
        return QuantizedCache("hqq", model.config, nbits=4, axis_key=1, axis_value=1)
    return TurboCache(model, **TURBO[name], max_sequence_tokens=length)


def fill(cache, rows, count):
    """Random keys and values for all layers."""
    shape = rows, SHAPE["num_key_value_heads"], count, SHAPE["head_dim"]
    for layer in range(SHAPE["num_hidden_layers"]):
        k, v = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in "kv")
        if isinstance(cache, TurboCache):
            cache.store.enter(layer, k, v)
            if layer == 0:
                cache.store.plan(k, v, SHAPE["num_attention_heads"])
            cache.store.append(layer, k, v)
        else:
            cache.update(k, v, layer)


def used():
    """Bytes of the device in use, the library's own and torch's together."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def forward(model, cache, ids):
    return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]


def timed(work):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin, result


def decode(model, name, rows, count):
    cache = None
    try:
        cache = made_cache(name, model, rows, count + STEPS + WARM)
        fill(cache, rows, count)
        torch.cuda.empty_cache()  # what filling took for a while is not decoding's
        times, ids = [], tokens(rows)
        for step in range(WARM + STEPS):
            seconds, logits = timed(lambda: forward(model, cache, ids))
            ids = logits.argmax(-1, keepdim=True)
            if step >= WARM:
                times.append(seconds)
        if not bool(torch.isfinite(logits).all()):
            raise RuntimeError(f"{name}, {rows} x {count}: logits are not finite")
        return {"ms": round(1e3 * statistics.median(times), 2),
                "tokens_per_second": round(rows / statistics.median(times), 1),
                "memory_gib": round(used() / 2**30, 1)}
    except (torch.OutOfMemoryError, tqkv.OutOfMemory):
        return {"trouble": "does not fit"}
    finally:
        if isinstance(cache, TurboCache):
            cache.close()


def prefill(model, name, count):
    times = []
    for _ in range(2):  # the first one also makes the cache
        cache = made_cache(name, model, 1, count)
        times.append(timed(lambda: forward(model, cache, tokens(1, count)))[0])
        if isinstance(cache, TurboCache):
            cache.close()
    return {"ms": round(1e3 * times[-1], 1), "tokens_per_second": round(count / times[-1])}


def measure(arguments, head):
    """The table; its JSON if a file is named. Returns the exit status."""
    names = [name for name in ("DynamicCache", "StaticCache", QUANTIZED) if arguments.peer in name]
    why = no_quantized() if QUANTIZED in names else ""
    if why:
        names.remove(QUANTIZED)
        print(f"SKIPPED {QUANTIZED}: {why}", flush=True)
    names += TURBO
    model, rows, failed = made_model(), [], 0
    report = {**head, "transformers": transformers.__version__, "weights_gib": round(used() / 2**30, 1),
              "shape": SHAPE, "rows": rows}
    with torch.no_grad():
        for kind, sizes in (("decode", DECODE), ("prefill", [(1, n) for n in PREFILL])):
            for batch, count in sizes:
                for name in names:
                    if not cases.named(f"{kind} {batch} x {count}", arguments.only):
                        continue
                    model.set_attn_implementation("tqkv" if name in TURBO else "sdpa")
                    torch.cuda.empty_cache()
                    torch.cuda.synchronize()
                    try:
                        if kind == "decode":
                            result = decode(model, name, batch, count)
                        else:
                            result = prefill(model, name, count)
                    except Exception as error:  # the others are measured all the same
                        failed += 1
                        result = {"trouble": f"{type(error).__name__}: {error}"[:300]}
                    rows.append({"kind": kind, "batch": batch, "tokens": count, "cache": name, **result})
                    print(line(rows[-1]), flush=True)
                    keep(arguments.json, report)
    print(f"engines: {len(rows) - failed} passed, {failed} failed, {int(bool(why))} skipped")
    return 1 if failed or not rows else 0


def keep(path, report):
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({**report, "clocks_after": gpu.clocks()}, file, indent=1)


def no_quantized():
    """Why there is no QuantizedCache to compare with, or nothing."""
    if not hasattr(transformers.cache_utils, "QuantizedCache"):
        return f"Transformers {transformers.__version__} has none"
    try:
        importlib.import_module("hqq.core.quantize")
    except ImportError as error:
        return f"hqq: {error}"
    return ""


def line(row):
    begin = f"{row['kind']:8} {row['batch']:3} x {row['tokens']:6}  {row['cache']:18}"
    if "trouble" in row:
        return begin + row["trouble"]
    memory = f"  {row['memory_gib']:6.1f} GiB in use" if "memory_gib" in row else ""
    return f"{begin}{row['ms']:9.2f} ms {row['tokens_per_second']:9.1f} tokens/s{memory}"
