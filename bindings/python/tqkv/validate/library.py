# SPDX-License-Identifier: Apache-2.0
"""The library as what is measured: vectors through a cache and back, attention on codes, bytes of a
configuration. The sections see nothing else of it, so that the suite's own tests can put a broken codec in
its place.
"""

import numpy as np

import tqkv

TILE = 32
SMALL = {"head_dim": 32, "bits": 2}  # the side of a cache that nobody looks at


class Library:
    """CPU caches of the loaded library."""
    def round_trip(
        self,
        x,
        bits,
        side="key",
        rule="paper",
        rotation="hadamard",
        search=False,
        seed=0,
        codebook=None,
        threads=0,
    ):
        """x [n, head_dim] encoded as keys or values of one head and decoded; float32, as x.

        rule, rotation   as Config's scale rules and rotations
        search           the encoder's scale search
        threads          0: all
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        is_key = side == "key"
        dim, other = x.shape[1], np.zeros((len(x), 1, SMALL["head_dim"]), dtype=np.float32)
        widths = (bits, SMALL["bits"]) if is_key else (SMALL["bits"], bits)
        dims = (dim, SMALL["head_dim"]) if is_key else (SMALL["head_dim"], dim)
        with tqkv.Cache(
                num_layers=1,
                num_q_heads=1,
                num_kv_heads=1,
                head_dim=dims[0],
                value_dim=dims[1],
                key_bits=widths[0],
                value_bits=widths[1],
                max_tokens=-(-len(x) // TILE) * TILE,
                max_batch_tokens=len(x),
                page_size=TILE,
                rotation=rotation,
                rotation_seed=seed,
                num_threads=threads,
                flags=0 if search else tqkv.CONSTANTS["TQ_FLAG_NO_SCALE_SEARCH"],
                **{f"{side}_scale_rule": rule, f"{side}_codebook": codebook},
        ) as cache:
            sequence, step = cache.sequence(), cache.batch()
            step.plan([sequence], [len(x)], [0])
            rows = x[:, None, :]
            step.append(0, *((rows, other) if is_key else (other, rows)))
            decoded = np.empty_like(rows)
            sequence.read(0, 0, len(x), **{"k" if is_key else "v": decoded})
        return decoded[:, 0]

    def attention(self, k, v, q, key_bits, value_bits, **fields):
        """Attention of q [1, q heads, d] over k, v [tokens, kv heads, d] in a cache; fields as Config's.
        -> out [1, q heads, d], decoded k, decoded v, in float32."""
        tokens, heads, dim = k.shape
        with tqkv.Cache(
                num_layers=1,
                num_q_heads=q.shape[1],
                num_kv_heads=heads,
                head_dim=dim,
                key_bits=key_bits,
                value_bits=value_bits,
                max_tokens=-(-tokens // 64) * 64,
                max_batch_tokens=tokens,
                **fields,
        ) as cache:
            sequence, step = cache.sequence(), cache.batch()
            step.plan([sequence], [tokens], [1])
            step.append(0, k, v)
            out = step.attend(0, q)
            decoded = sequence.read(0, 0, tokens, like=k)
        return out, decoded[0], decoded[1]

    def window(self, k, v, bits, window, once=False):
        """k, v [tokens, kv heads, d], appended in halves to a cache that keeps the last `window` tokens
        exact. once: they get their codes when they leave the window. -> (k, v) as read back, the same after
        the window was flushed, and how many tokens there are then."""
        tokens, heads, dim = k.shape
        with tqkv.Cache(
                num_layers=1,
                num_q_heads=heads,
                num_kv_heads=heads,
                head_dim=dim,
                key_bits=bits,
                value_bits=bits,
                max_tokens=-(-tokens // TILE) * TILE,
                page_size=TILE,
                window_tokens=window,
                flags=tqkv.CONSTANTS["TQ_FLAG_STORE_ONCE"] if once else 0,
        ) as cache:
            sequence, step = cache.sequence(), cache.batch()
            for first, end in ((0, tokens // 2), (tokens // 2, tokens)):
                step.plan([sequence], [end - first], [0])
                step.append(0, k[first:end], v[first:end])
            before = sequence.read(0, 0, tokens, like=k)
            sequence.flush()
            return before, sequence.read(0, 0, tokens, like=k), len(sequence)

    def quantizer(self, dim, bits, **fields):
        """A quantizer of vectors on their own; fields as tqkv.Quantizer's."""
        return tqkv.Quantizer(dim, bits, **fields)

    def bytes(self, **fields):
        """What a cache of these fields of Config allocates: tq_cache_bytes."""
        return tqkv.Config(**fields).bytes()

    def refusal(self, **fields):
        """Why the library cannot run these fields of Config; "" if it can."""
        return "; ".join(tqkv.Config(**fields).check())


def attend64(q, k, v, scale):
    """float64 attention of q [1, q heads, d] over k, v [tokens, kv heads, d], a head at a time, in q's shape.
    Head h reads kv head h * kv heads / q heads."""
    out = np.empty(q.shape)
    for head in range(q.shape[1]):
        kv_head = head * k.shape[1] // q.shape[1]
        logits = k[:, kv_head].astype(np.float64) @ q[0, head].astype(np.float64) * scale
        weights = np.exp(logits - logits.max())
        out[0, head] = weights @ v[:, kv_head].astype(np.float64) / weights.sum()
    return out
