# SPDX-License-Identifier: Apache-2.0
"""The oracle's grouped sides against what the text promises, in float64."""
import numpy as np
import pytest
from reference import tqkv_reference as ref


@pytest.mark.parametrize("dim", [32, 80, 112, 576])
@pytest.mark.parametrize("group", [16, 32, 64])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_error_is_half_a_step(dim, group, bits):
    x = np.random.default_rng(dim + group + bits).normal(size=(50, dim)).astype(np.float32)
    x[0] = 3.25   # constant: exact, the step is 0
    x[1] *= 1e-6  # steps that are subnormal in float16
    encoded = ref.encode_grouped(x, bits, group)
    assert encoded.codes.max() == 2**bits - 1 and not encoded.saturated.any()
    decoded = ref.decode_grouped(encoded.codes, encoded.pairs, group).astype(np.float64)
    scale, zero = (np.repeat(encoded.pairs[..., i].view(np.float16).astype(np.float64), group, 1)[:, :dim]
                   for i in (0, 1))
    # half a step inside of the range; at its ends what rounding scale and zero to 11 bits moves them by, at
    # least float16's smallest number
    top = 2**bits - 1
    rounding = np.maximum(np.abs(zero), 2.0**-14) * 2.0**-11 + top * np.maximum(scale, 2.0**-14) * 2.0**-11
    bound = 0.5 * scale + rounding + 1e-7 * np.abs(x)
    assert (np.abs(decoded - x) <= bound).all()
    assert (decoded[0] == 3.25).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rows_hold_every_code(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, size=(7, 80), dtype=np.uint8)
    words = ref.pack_rows(codes, bits)
    assert words.shape == (7, -(-80 * bits // 32))
    number = sum(int(word) << 32 * i for i, word in enumerate(words[3]))
    assert [number >> bits * i & 2**bits - 1 for i in range(80)] == codes[3].tolist()
    back, behind = ref.unpack_rows(words, 80, bits)
    assert (back == codes).all() and not behind.any()
