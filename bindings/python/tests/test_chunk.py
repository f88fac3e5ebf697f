# SPDX-License-Identifier: Apache-2.0
"""A plan's own tokens as the caller's numbers: against attention in float64, and what is refused."""
import numpy as np
import pytest
import tqkv

FLAG = tqkv.CONSTANTS["TQ_FLAG_EXACT_CHUNK"]
CONFIG = dict(num_layers=1, num_q_heads=4, num_kv_heads=2, head_dim=64, io_dtype="float16", key_bits=3,
              value_bits=3, max_tokens=256, max_batch_tokens=64, num_threads=1)


def rows(rng, tokens, heads):
    return rng.standard_normal((tokens, heads, 64)).astype("float16")


def exact(q, k, v):
    """[queries][4][64] of the last tokens of k and v, causal, in float64."""
    q, k, v = (x.astype("f8") for x in (q, k, v))
    out = np.empty(q.shape)
    for query in range(len(q)):
        seen = len(k) - len(q) + query + 1
        for head in range(4):
            logits = k[:seen, head // 2] @ q[query, head] / 8
            weights = np.exp(logits - logits.max())
            out[query, head] = weights @ v[:seen, head // 2] / weights.sum()
    return out


def test_first_prompt_and_the_next_chunk():
    rng = np.random.default_rng(1)
    with tqkv.Cache(**CONFIG, flags=FLAG) as cache, cache.batch() as step:
        sequence = cache.sequence()
        q, k, v = rows(rng, 40, 4), rows(rng, 40, 2), rows(rng, 40, 2)
        step.plan([sequence], [40])
        step.append(0, k, v)
        out = step.attend(0, q, chunk=(k, v), out_dtype="float32")
        np.testing.assert_allclose(out, exact(q, k, v), atol=2e-4)
        q, more_k, more_v = rows(rng, 5, 4), rows(rng, 5, 2), rows(rng, 5, 2)
        step.plan([sequence], [5])
        spread = np.zeros((5, 3, 64), "float16")  # strides reach the library
        spread[:, :2] = more_k
        out, lse = step.attend(0, q, chunk=(spread[:, :2], more_v), out_dtype="float32", lse=True)
        step.append(0, more_k, more_v)
        old_k, old_v = sequence.read(0, 0, 40, like=k)
        wanted = exact(q, np.concatenate([old_k, more_k]), np.concatenate([old_v, more_v]))
        np.testing.assert_allclose(out, wanted, atol=1e-3)  # read rounds to float16
        assert lse.shape == (5, 4)


def test_refused():
    rng = np.random.default_rng(2)
    q, k = rows(rng, 3, 4), rows(rng, 3, 2)
    with tqkv.Cache(**CONFIG) as cache, cache.batch() as step:
        sequence = cache.sequence()
        step.plan([sequence], [3])
        with pytest.raises(tqkv.InvalidArgument, match="without TQ_FLAG_EXACT_CHUNK"):
            step.attend(0, q, chunk=(k, k))
    with tqkv.Cache(**CONFIG, flags=FLAG) as cache, cache.batch() as step:
        sequence = cache.sequence()
        step.plan([sequence], [3])
        with pytest.raises(tqkv.InvalidArgument, match="chunk: a int, must be a pair"):
            step.attend(0, q, chunk=3)
        with pytest.raises(tqkv.InvalidArgument, match="k: "):
            step.attend(0, q, chunk=(k[:2], k))
