# SPDX-License-Identifier: Apache-2.0
"""Keys for sharing prefixes between requests. Whoever can predict or collide such a key can read another
tenant's tokens or learn of them, so they are 256 bits of a keyed cryptographic hash, BLAKE2b, and not the
64-bit fingerprint of a cache (SECURITY.md).

Each key is a hash over the key before it and one block of tokens: equal keys mean equal tokens from the first
on. The first is over the salt's domain: the model and the whole configuration.
"""
import ctypes
import hashlib
import json
from typing import Any, List, Sequence as Many

from .config import integer
from .errors import InvalidArgument

__all__ = ["prefix_keys"]

_SIZE = 32
# Capacity and devices: what decides no byte of a page.
_NO_IDENTITY = {"allocator", "pool", "device", "max_tokens", "max_reserve_tokens", "max_sequence_tokens",
                "max_sequences", "max_batch_sequences", "max_batch_tokens", "max_raw_tokens", "num_threads"}


def _hash(salt: bytes, *parts: bytes) -> bytes:
    state = hashlib.blake2b(digest_size=_SIZE, key=salt, person=b"tqkv prefix")
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts are one string
        state.update(part)
    return state.digest()


def prefix_keys(cache: Any, tokens: Many[int], block: int, *, salt: bytes, model: bytes) -> List[bytes]:
    """Keys of 32 bytes for every whole block of a prompt; keys[i] stands for tokens[:(i + 1) * block].

    cache   the Cache whose pages are shared: its configuration and fingerprint go into the keys
    tokens  the prompt, as integers 0 .. 2^63 - 1; what stands for images must be unique to their content
    block   tokens of a block, >= 1
    salt    a secret of 16 .. 64 bytes of the tenant, or of those who may share: who has not got it cannot
            name a key
    model   what else decides keys and values: a hash of the weights, adapters, RoPE settings, centres

    Raises InvalidArgument.
    """
    block = integer("block", block, ctypes.c_int64)
    if block < 1:
        raise InvalidArgument(f"block = {block}: must be at least 1")
    for name, value in (("salt", salt), ("model", model)):
        if not isinstance(value, bytes):
            raise InvalidArgument(f"{name}: must be bytes, not {type(value).__name__}")
    if not 16 <= len(salt) <= hashlib.blake2b.MAX_KEY_SIZE:
        raise InvalidArgument(f"salt: {len(salt)} bytes: must be 16 .. {hashlib.blake2b.MAX_KEY_SIZE}")
    if not model:
        raise InvalidArgument("model: is empty; give a hash of the weights at least")
    numbers = [integer(f"tokens[{i}]", token, ctypes.c_int64) for i, token in enumerate(tokens)]
    for i, number in enumerate(numbers):
        if number < 0:
            raise InvalidArgument(f"tokens[{i}] = {number}: must not be negative")
    fields = {name: repr(value) for name, value in vars(cache.config).items() if name not in _NO_IDENTITY}
    key = _hash(salt, model, json.dumps(fields, sort_keys=True).encode(),
                cache.fingerprint().to_bytes(8, "little"), block.to_bytes(8, "little"))
    keys = []
    for end in range(block, len(numbers) + 1, block):
        key = _hash(salt, key, b"".join(n.to_bytes(8, "little") for n in numbers[end - block:end]))
        keys.append(key)
    return keys
