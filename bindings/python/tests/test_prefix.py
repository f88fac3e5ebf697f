# SPDX-License-Identifier: Apache-2.0
"""Keys of prefixes: equal where all that decides the pages is equal, and nowhere else."""
import hashlib

import pytest
import tqkv
from test_cache import cache

SALT, MODEL = b"s" * 16, b"weights"


def keys(tokens, block=4, salt=SALT, model=MODEL, **changes):
    with cache(**changes) as c:
        return tqkv.prefix_keys(c, tokens, block, salt=salt, model=model)


def test_a_key_stands_for_all_tokens_in_front():
    own = keys(range(12))
    assert len(own) == 3 and all(len(key) == 32 for key in own) and len(set(own)) == 3
    assert keys(range(14)) == own and keys(range(11)) == own[:2] and keys([]) == keys([1, 2, 3]) == []
    for at in range(12):  # another token changes its block and all behind it, nothing in front
        other = keys([99 if i == at else i for i in range(12)])
        assert [a == b for a, b in zip(own, other)] == [block < at // 4 for block in range(3)]


def test_everything_that_decides_pages_goes_in():
    own = keys(range(4))[0]
    others = [
        keys(range(4), salt=b"t" * 16)[0],
        keys(range(4), salt=b"s" * 17)[0],
        keys(range(4), model=b"weight")[0],
        keys(range(4), key_bits=3)[0],
        keys(range(4), page_size=128)[0],
        keys(range(4), window_tokens=9)[0],
        keys(range(4), rotation_seed=1)[0],
        keys(range(4), layers=[tqkv.Layer(key_bits=5), tqkv.Layer()])[0],
        keys(range(8), block=8)[0],
    ]
    assert len({own, *others}) == 1 + len(others)
    assert keys(range(4), max_tokens=2048, num_threads=2)[0] == own  # capacity decides no byte


def test_it_is_the_keyed_hash_that_it_says():
    """Made again by hand: the parts with their lengths, keyed by the salt."""
    two = keys(range(8))

    def part(data):
        return len(data).to_bytes(8, "little") + data

    block = b"".join(i.to_bytes(8, "little") for i in range(4, 8))
    again = hashlib.blake2b(part(two[0]) + part(block), digest_size=32, key=SALT, person=b"tqkv prefix")
    assert again.digest() == two[1]


@pytest.mark.parametrize("wrong, text", (
    (dict(block=0), "block = 0"),
    (dict(block="4"), "block"),
    (dict(salt=b"short"), "salt: 5 bytes: must be 16 .. 64"),
    (dict(salt="s" * 16), "salt: must be bytes, not str"),
    (dict(model=b""), "model: is empty"),
    (dict(model=7), "model: must be bytes, not int"),
    (dict(tokens=[1, -2]), r"tokens\[1\] = -2"),
    (dict(tokens=[1, 1 << 64]), r"tokens\[1\] = 18446744073709551616"),
))
def test_refused(wrong, text):
    with pytest.raises(tqkv.InvalidArgument, match=text):
        keys(**{"tokens": [1, 2], **wrong})
