# SPDX-License-Identifier: Apache-2.0
"""Bytes, counted: what the sources' formats take, what tqkv allocates, with side data, tables and windows."""

import math

from .. import CONSTANTS
from .rows import COUNTED, as_printed

FP16 = 2
TOKENS = (4096, 32768)
# S2's capacity table: value bits, bytes a token and head, thousands of tokens, extension.
SAYS_CONTEXT = ((2, 132, 2386, "3.88"), (3, 148, 2130, "3.46"), (4, 164, 1920, "3.12"))
S2_BUDGET, S2_HEADS = 16.8e9 * 0.6, 32
WINDOW, SINKS, S4_BUFFER = 128, 4, 128
RAW_ROOM = 224  # what one sequence with that window and those sinks needs, in pages of 32 tokens
MODEL = {"num_layers": 32, "num_q_heads": 32, "num_kv_heads": 8}
SHAPE = "32 layers, 8 kv heads"


def prod_key(dim, bits, side=FP16):
    """Of S2 and S4: (bits - 1)-bit indices, 3 padded to 4; a sign for each coordinate; two norms."""
    index = {1: 1, 2: 2, 3: 4}[bits - 1]
    return dim * index // 8 + dim // 8 + 2 * side


def group_value(dim, bits, group=32, side=FP16):
    return dim * bits // 8 + dim // group * 2 * side


def tqkv_vector(dim, bits):
    """FORMAT.md 4: a tile of 32 vectors has 4 D b bytes of codes and 64 of scales; D a multiple of 32."""
    return (4 * (-(-dim // 32) * 32) * bits + 64) // 32


def context_extension(context):
    for bits, size, thousands, ratio in SAYS_CONTEXT:
        real = prod_key(128, 3) + group_value(128, bits)
        four_bits = prod_key(128, 4) + group_value(128, bits)
        context.table.theirs(
            real == size,
            f"3-bit keys + {bits}-bit values take {size} B a token and head, {ratio}x",
            f"{real} B, {512 / real:.2f}x: {size} B is what its 4-bit keys take ({four_bits} B)",
            source="S2",
            says=f"{size} B, {ratio}x",
            subject=COUNTED,
            note=("Its script prices keys at d * 4 / 8 B for the indices and d / 8 for the signs; its 3-bit "
                  "quantiser stores 2-bit indices: 32 + 16 + 4 B."),
            figures={"bits": bits, "says": size, "real": real},
        )
        fits = S2_BUDGET / (size * S2_HEADS) / 1000
        layers = MODEL["num_layers"]
        context.table.theirs(
            as_printed(fits / layers, str(thousands), 10),
            f"{thousands:,} k tokens fit into 60 % of 16.8 GB with {bits}-bit values",
            f"{fits:,.0f} k tokens of one layer of 32 heads; of {layers} layers {fits / layers:,.0f} k, with "
            f"the real {real} B {S2_BUDGET / (real * S2_HEADS * layers) / 1000:,.0f} k",
            source="S2",
            says=f"{thousands:,} k tokens",
            subject=COUNTED,
            note="The headline leaves the layers of the model out of the count.",
        )
        coded = context.codec.bytes(
            num_layers=1,
            num_q_heads=1,
            num_kv_heads=1,
            head_dim=128,
            key_bits=3,
            value_bits=bits,
            max_tokens=64,
        ).token_bytes
        context.table.ours(
            coded == tqkv_vector(128, 3) + tqkv_vector(128, bits),
            f"tqkv at 3-bit keys + {bits}-bit values",
            f"{coded} B, {512 / coded:.2f}x; {S2_BUDGET / (coded * 32 * 32) / 1000:,.0f} k tokens of 32"
            " layers of 32 heads",
            says=f"{tqkv_vector(128, 3) + tqkv_vector(128, bits)} B by FORMAT.md 4",
            subject=COUNTED,
            figures={"bits": bits, "bytes": coded},
        )


def compression(context):
    """tqkv's own ratio in three ways of counting, from what caches allocate."""
    for dim in (128, 256):
        for key_bits, value_bits in ((4, 4), (3, 3), (3, 2), (2, 2)):
            widths = {"head_dim": dim, "key_bits": key_bits, "value_bits": value_bits}
            exact = 2 * dim * FP16
            codes = dim * (key_bits + value_bits) / 8
            one = context.codec.bytes(num_layers=1, num_q_heads=1, num_kv_heads=1, max_tokens=64, **widths)
            whole = {}
            for tokens in TOKENS:
                total = context.codec.bytes(
                    **MODEL,
                    **widths,
                    max_tokens=tokens,
                    window_tokens=WINDOW,
                    sink_tokens=SINKS,
                    io_dtype="float16",
                    max_raw_tokens=RAW_ROOM,
                    max_batch_tokens=1,
                )
                used = total.page_bytes + total.raw_bytes + total.table_bytes
                whole[tokens] = MODEL["num_layers"] * MODEL["num_kv_heads"] * exact * tokens / used
            text = [f"{exact / codes:.2f}x", f"{exact / one.token_bytes:.2f}x"]
            text += [f"{ratio:.2f}x" for ratio in whole.values()]
            by_format = tqkv_vector(dim, key_bits) + tqkv_vector(dim, value_bits)
            context.table.ours(
                one.token_bytes == by_format and one.fp16_token_bytes == exact and
                all(ratio <= exact / by_format for ratio in whole.values()),
                f"Compression at {key_bits} + {value_bits} bits, d {dim}: codes alone, with scales, with"
                " window and tables at 4k and at 32k",
                ", ".join(text),
                says=f"{by_format} B a token by FORMAT.md 4",
                subject=COUNTED,
                note=(f"Window of {WINDOW} tokens, {SINKS} sinks, pages, rotations: what "
                      f"tq_cache_config_bytes says that a cache of {SHAPE} allocates."),
                figures={
                    "plot": "compression",
                    "dim": dim,
                    "label": f"{key_bits} + {value_bits}",
                    "codes": exact / codes,
                    "scales": exact / one.token_bytes,
                    **{str(t): r
                       for t, r in whole.items()},
                },
            )


def long_window(context):
    """S1's profile of long exact windows, coded beside their copies and stored once."""
    tokens, exact, layers, heads, dim = 32768, 16384, 28, 4, 128
    fields = {"num_layers": layers, "num_q_heads": 28, "num_kv_heads": heads, "head_dim": dim,
              "key_bits": 8, "value_bits": 6, "io_dtype": "float16", "window_tokens": exact,
              "max_batch_tokens": 1, "max_raw_tokens": exact + 64, "max_sequence_tokens": tokens}
    beside = context.codec.bytes(max_tokens=tokens, **fields)
    once = context.codec.bytes(max_tokens=tokens - exact, flags=CONSTANTS["TQ_FLAG_STORE_ONCE"], **fields)
    by_format = layers * heads * (tqkv_vector(dim, 8) + tqkv_vector(dim, 6))
    context.table.ours(
        beside.page_bytes - once.page_bytes == exact * by_format and once.raw_bytes == beside.raw_bytes and
        once.token_bytes == by_format,
        f"{tokens:,} tokens of 28 layers with 4 kv heads, the last {exact:,} exact",
        f"8 + 6 bits: {beside.page_bytes / 1e6:.0f} MB of codes and {beside.raw_bytes / 1e6:.0f} MB raw; "
        f"each token stored once: {once.page_bytes / 1e6:.0f} and {once.raw_bytes / 1e6:.0f} MB",
        says=f"{by_format} B a token by FORMAT.md 4, and none for those of the window",
        subject=COUNTED,
        note=f"float16: {once.fp16_token_bytes * tokens / 1e6:,.0f} MB. TQ_FLAG_STORE_ONCE codes a token "
             "when it leaves the window.",
        figures={"beside": beside.page_bytes + beside.raw_bytes, "once": once.page_bytes + once.raw_bytes},
    )


def theirs(context):
    """Ratios of the sources, counted again."""
    fp32 = prod_key(256, 3, 4) + group_value(256, 2, side=4)
    fp16 = prod_key(256, 3) + group_value(256, 2)
    context.table.theirs(
        as_printed(1024 / fp32, "4.41"),
        "K3/V2 at d 256 is 4.41x",
        f"{1024 / fp32:.2f}x with float32 side data ({fp32} B), {1024 / fp16:.2f}x with float16 ({fp16} B)",
        source="S4",
        says="4.41x",
        subject=COUNTED,
        tolerance="its last digit",
    )
    real = prod_key(128, 3) + group_value(128, 2)
    context.table.theirs(
        as_printed(512 / real, "5.1"),
        "K3/V2 at d 128 is 5.1x",
        f"{512 / real:.2f}x, float16 side data, codes alone",
        source="S4",
        says="5.1x",
        subject=COUNTED,
        tolerance="its last digit",
    )
    nibbles = [128 * bits // 8 + 2 for bits in (4, 2)]
    context.table.theirs(
        nibbles == [66, 34],
        "4 and 2 bits take 66 and 34 B a vector of 128",
        f"{nibbles[0]} and {nibbles[1]} B; tqkv {tqkv_vector(128, 4)} and {tqkv_vector(128, 2)} B",
        source="S3",
        says="66 B (3.88x), 34 B (7.53x)",
        subject=COUNTED,
    )
    context.table.theirs(
        as_printed(256 / nibbles[0], "7.2"),
        "The 4-bit cache is 7.2x smaller",
        "3.88x; nothing that a 4-bit code with a scale does for a vector of 128 is more than 4x",
        source="S3",
        says='7.2x "system"',
        subject=COUNTED,
    )
    loose = (128 + 2) + (128 + 128 // 32 * 4)
    qwen = 28 * 4 * 128 * 2 * FP16 * 700 / 1e6
    context.table.theirs(
        as_printed(512 / loose, "5.2"),
        "K6/V6 takes a cache of 700 tokens from 268 MB to 51 MB, 5.2x",
        f"stored as one byte an element: {loose} B a token and head, {512 / loose:.2f}x; and the float16"
        f" cache of Qwen2.5-7B at 700 tokens is {qwen:.0f} MB",
        source="S1",
        says="5.2x",
        subject=COUNTED,
        note=f"tqkv at 6 + 6 bits: {2 * tqkv_vector(128, 6)} B, {512 / (2 * tqkv_vector(128, 6)):.2f}x.",
    )


def run(context):
    context.progress("what formats take, what caches allocate")
    context_extension(context)
    compression(context)
    long_window(context)
    theirs(context)


def with_buffer(coded, tokens, heads=math.inf, buffer=S4_BUFFER, dim=128):
    """S4's ratio with its exact buffer, and for finite kv heads a layer's two d x d float32 matrices."""
    used = (tokens - buffer) * coded + buffer * 2 * dim * FP16
    matrices = 0 if math.isinf(heads) else 2 * dim * dim * 4 / heads
    return tokens * 2 * dim * FP16 / (used + matrices)
