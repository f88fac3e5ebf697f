#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds that say what each target's input looks like, written into corpus/NAME: programs that plan, append,
attend, fork and remove; configurations that use every array; small sound safetensors files and captures.
What fuzzing found on its own lies beside them (run.py --grow)."""
import json
import os
import struct

STATE_CACHES = 14  # of state_caches.h
HERE = os.path.dirname(os.path.abspath(__file__))
# The order of do_call in calls.cpp.
(CREATE, FREE, FORK, TRUNCATE, REMOVE, SELECT, COPY, BATCH, END_BATCH, PLAN, APPEND, ATTEND, READ, RESERVE,
 CENTRES, MERGE, ASK, IMPORT, LOAD) = (0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 16, 18, 19, 20, 21, 22, 240, 241)


def call(op, a=0, b=0, bad=0, n=0, value=0):
    return struct.pack("<BBBBIQ", op, a, b, bad, n, value)


def step(tokens, layers=3, batch=0, params=0):
    """One plan of up to three sequences, appended to and attended in every layer."""
    bits = tokens | 1 << 6 if tokens > 7 else tokens
    calls = [call(PLAN, batch, 2, 0, 0, bits | bits << 12 | bits << 24)]
    for layer in range(layers):
        calls.append(call(APPEND, layer, batch, 0, layer, 77 + layer))
        calls.append(call(ATTEND, layer, batch, 0, layer, 99 + layer | params << 16))
    return b"".join(calls)


def programs():
    heads = {
        "plain": bytes([1, 1, 0, 0, 2, 0, 100, 3]) + bytes(8),
        "window": bytes([1, 3, 5, 1, 11, 1, 120, 2, 141, 20]) + bytes(6),
        "layers": bytes([2, 2, 10, 2, 19, 0, 150, 3, 17, 9, 0, 8, 0, 5, 1, 0]),
        "raw": bytes([0, 0, 3, 0, 54, 0, 90, 1]) + bytes(8),
        "grow": bytes([0, 1, 0, 1, 36, 0, 10, 3, 0, 0, 2]) + bytes(5),
    }
    bodies = {
        "decode": step(40) + step(1) + step(1) + call(READ, 0, 0, 0, 9, 0),
        "fork": step(33) + call(FORK, 0) + step(2) + call(TRUNCATE, 1, 0, 0, 20) + step(3) + call(FREE, 0)
        + step(1),
        "move": step(70) + call(REMOVE, 0, 0, 0, 5, 30) + step(1) + call(SELECT, 0, 90, 0, 3) + step(2),
        "copy": step(45) + call(COPY, 0, 128) + call(COPY, 0, 0) + step(1) + step(4, batch=2)
        + call(ASK, 0, 0, 0, 1),
        "masks": b"".join(step(5, 1, params=bits)
                          for bits in (1 << 27, 1 << 28, 1 << 29, 1 << 30, 3 << 30, 1 << 20)),
        "others": call(RESERVE, 0, 0, 0, 40) + call(CENTRES, 0, 0, 0, 3) + call(MERGE, 1, 2, 0, 32) + step(20)
        + call(END_BATCH, 0) + call(BATCH, 0) + call(CREATE) + step(7)
        + b"".join(call(ASK, 0, 0, 0, n) for n in range(6)),
    }
    for head, start in heads.items():
        for body, calls in bodies.items():
            yield f"{head}-{body}", start + calls
    yield from programs_of_codes()


def programs_of_codes():
    """Programs of what a cache may have: families of codes, bands, latent layers, flags, key matrices."""
    heads = {
        "bands": bytes([1, 1, 3, 21, 2, 0, 100, 3]) + bytes(8),
        "trellis": bytes([1, 0, 0, 12, 2, 0, 100, 3, 0, 0, 0, 0, 0, 0, 8, 0]),
        "levels": bytes([0, 0, 0, 15, 2, 0, 100, 3, 0, 0, 0, 0, 0, 0, 10, 0]),
        "grouped": bytes([0, 1, 2, 9, 2, 0, 100, 3, 0, 0, 0, 0, 0, 0, 6, 0]),
        "prod": bytes([0, 1, 0, 18, 2, 1, 100, 3]) + bytes(8),
        "once": bytes([1, 1, 0, 1, 11, 1, 120, 2, 41, 20, 0, 0, 8, 0, 0, 0]),
        "once-chunk": bytes([0, 1, 0, 0, 11, 0, 120, 2, 41, 20, 0, 0, 24, 0, 0, 0]),
        "chunk": bytes([1, 1, 0, 1, 2, 0, 100, 3, 0, 0, 0, 0, 16, 0, 0, 0]),
        "latent": bytes([0, 1, 1, 2, 55, 0, 100, 3, 21, 4, 0, 0, 0, 192, 0, 0]),
        "last-latent": bytes([0, 1, 16, 2, 2, 0, 100, 3, 0, 0, 0, 8, 0, 192, 0, 0]),
    }
    travel = (step(40) + call(LOAD, 0, 128) + call(LOAD, 0, 0) + call(IMPORT, 0, 1, 0, 50) + step(2)
              + call(IMPORT, 0, 2, 0, 20, 1) + step(1) + step(3, batch=2) + call(SELECT, 0, 40, 0, 3)
              + call(LOAD, 0, 128))
    turned = call(CENTRES, 0, 0, 0, 4, 3 << 20 | 5) + call(CENTRES, 0, 128, 0, 4, 3 << 20 | 5) + call(
        CENTRES, 0, 0, 0, 3) + travel
    chunk = step(40, params=1 << 33) + step(5, params=1 << 33) + call(FORK, 0) + step(1, params=1 << 33)
    for head, start in heads.items():
        for body, calls in {"travel": travel, "turned": turned, "chunk": chunk}.items():
            yield f"{head}-{body}", start + calls


def configurations():
    def edit(what, where, value, layer=0, how=0):
        return struct.pack("<BBBBQ", what, where, how, layer, value)

    # 4-byte words of tq_cache_config
    word = {"num_layers": 3, "key_bits": 9, "code_family": 11, "rotation": 16, "page_size": 19,
            "max_sequences": 32, "flags": 44, "layer_kind": 64}
    yield "plain", b"\0"
    yield "window", b"\x20"
    yield "several", b"\1" + edit(0, word["page_size"], 96) + edit(0, word["max_sequences"], 3) + edit(
        0, word["rotation"], 2)
    yield "layers", b"\2" + edit(2, 3, 64, 1) + edit(2, 10, 20, 1) + edit(2, 11, 1, 2)
    yield "bits", b"\1" + edit(3, 0, 5, 0) + edit(3, 1, 16, 1)
    yield "books", b"\1" + edit(0, word["key_bits"], 3) + edit(4, 0, 16) + edit(4, 1, 3, 1)
    yield "bands", b"\1" + edit(6, 0, 5) + edit(6, 4, 9, 0, 16) + edit(6, 0, 3, 1)
    yield "bands-not-a-permutation", b"\1" + edit(6, 1, 9, 1, 16)
    yield "levels", b"\0" + edit(0, word["code_family"], 4) + edit(7, 0, 4) + edit(7, 1, 3)
    yield "levels-of-a-layer", b"\1" + edit(0, word["code_family"], 4) + edit(2, 99, 0) + edit(
        7, 0, 4) + edit(7, 1, 3) + edit(7, 0, 0x3F000000, 129, 16)
    for family in (2, 3, 5):
        yield f"family-{family}", b"\0" + edit(0, word["code_family"] + (family == 2) * 43, family)
    yield "once", b"\x20" + edit(0, word["flags"], 8)
    yield "once-chunk", b"\x20" + edit(0, word["flags"], 24)
    yield "latent", b"\0" + edit(0, word["layer_kind"], 2) + edit(0, 7, 32) + edit(0, 6, 64)
    # max_tokens and max_reserve_tokens, 8 bytes each, at the ends of their type
    for name, number, page in (("least", 24, 64), ("most", 23, 1)):
        yield f"tokens-{name}", b"\x20" + edit(0, word["flags"], 8) + edit(0, 14, number, 0, 66) + edit(
            0, 15, number, 0, 66) + edit(0, word["page_size"], page)
    yield "replay-many-layers", b"\2" + edit(0, word["num_layers"], 65536)


def safetensors(tensors, metadata=None, lead=b""):
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, (dtype, shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = lead + json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def files():
    yield "empty", safetensors({})
    yield "metadata", safetensors({}, {"format": "pt"})
    types = (("BOOL", 1), ("I8", 1), ("F8_E4M3", 1), ("BF16", 2), ("F32", 4), ("F64", 8))
    yield "types", safetensors({name: (name, [2], bytes(2 * size)) for name, size in types})
    yield "scalar", safetensors({"a": ("F16", [], b"\0\x3c"), "b": ("U8", [0, 5], b"")})
    one = {f"layers.0.{part}": ("F16", [1, 2, 4], bytes(range(16))) for part in ("key", "value", "query")}
    yield "capture", safetensors(one)
    two = {f"layers.1.{part}": ("F32", [1, 2, 4], bytes(32)) for part in ("key", "value", "query")}
    yield "capture-of-two", safetensors(dict(one, **two))


def saved_sequences():
    """The golden files, each behind the number of its cache in state_caches.h."""
    golden = os.path.join(os.path.dirname(HERE), "state", "golden")
    for number, name in enumerate(("dense", "empty", "layers", "padded", "raw", "window")):
        with open(os.path.join(golden, name + ".tqkv"), "rb") as file:
            yield name, bytes([number]) + file.read()
    for number in range(STATE_CACHES):
        yield f"own-{number}", bytes([128 + number, 70])
        yield f"own-{number}-cut", bytes([128 + number, 40]) + struct.pack("<BHBI", 31, 300, 0, 0)


def parts():
    def do(what, how=0, more=0, value=0, where=0):
        return struct.pack("<BBBBQ", what, where, how, more, value)

    describe, export, put = do(2), do(3), do(4)
    for cache in range(STATE_CACHES):
        yield f"whole-{cache}", bytes([cache, 70]) + describe + export + put
        one_layer = do(0, 0, 0, 1, 2)  # num_layers = 1
        yield f"layer-{cache}", bytes([cache, 70]) + one_layer + describe + export + put
        some = do(0, 64, 0, 32, 4)  # num_tokens = 32
        yield f"tokens-{cache}", bytes([cache, 70]) + some + describe + export + put + do(5, 1, 0, 9) + put


def calibrations():
    def do(what, layer=0, how=0, more=0, value=0):
        return struct.pack("<BBBBQ", what, layer, how, more, value)

    fed = do(0, 0, 100) + do(0, 1, 172) + do(0, 0, 150, 0, 5) + do(0, 1, 100)
    for which in range(4):
        yield f"own-{which}", bytes([4 * which, 3])
        yield f"own-{which}-other-codes", bytes([4 * which, 9])
        yield f"fed-{which}", bytes([4 * which + 3, 0]) + fed + do(4, 0, 0, 0, 2) + do(5)
        yield f"turned-{which}", bytes([4 * which + 3, 0]) + do(3, 0, 0, 0, 5) + fed + do(3, 0, 128) + do(
            4, 0, 0, 0, 64)
    yield "many-heads", bytes([8, 0]) + struct.pack("<BHBI", 2, 20, 0, 65536)


def main():
    for target, seeds in (("calibration", calibrations()), ("calls", programs()),
                          ("config", configurations()), ("safetensors", files()), ("load", saved_sequences()),
                          ("import", parts())):
        os.makedirs(os.path.join(HERE, "corpus", target), exist_ok=True)
        for name, content in seeds:
            with open(os.path.join(HERE, "corpus", target, name), "wb") as file:
                file.write(content)


if __name__ == "__main__":
    main()
