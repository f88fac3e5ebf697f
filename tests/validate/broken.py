# SPDX-License-Identifier: Apache-2.0
"""Codecs that are broken in one way each: the library, and a fault behind or in front of it."""
import dataclasses

import numpy as np
from tqkv.validate import paper
from tqkv.validate.library import Library


class LevelsTooLarge(Library):
    """Every decoded coordinate is 2 % too large."""

    def round_trip(self, x, bits, *arguments, **options):
        return super().round_trip(x, bits, *arguments, **options) * np.float32(1.02)


class OtherSignsBack(Library):
    """Decoding undoes other signs than encoding used."""

    def round_trip(self, x, bits, side="key", *arguments, **options):
        decoded, dim = super().round_trip(x, bits, side, *arguments, **options), x.shape[1]
        if dim & (dim - 1) or options.get("rotation") == "dense":
            return decoded
        signs = [paper.sign_stream(seed, 0, 0, 0, dim) for seed in (0, 1)]
        return paper.hadamard(paper.hadamard(decoded * signs[0])) * signs[1]


class OtherStream(Library):
    """Signs of another stream, the same in both directions: sound codes, but not those of FORMAT.md."""

    def round_trip(self, x, bits, *arguments, seed=0, **options):
        return super().round_trip(x, bits, *arguments, seed=seed + 1, **options)


class NoSigns(Library):
    """A Hadamard transform alone."""

    def round_trip(self, x, bits, side="key", *arguments, seed=0, **options):
        dim = x.shape[1]
        if dim & (dim - 1) or bits > 6 or options.get("rotation") == "dense":
            return super().round_trip(x, bits, side, *arguments, seed=seed, **options)
        return paper.Mse(dim, bits, None, paper.hadamard(np.eye(dim))).round_trip(x).astype(np.float32)


class BiasedFactor(Library):
    """The unbiased scale is 1 % too small."""

    def round_trip(self, x, bits, side="key", rule="paper", **options):
        factor = np.float32(0.99 if rule == "unbiased" else 1)
        return super().round_trip(x, bits, side, rule, **options) * factor


class NoSearch(Library):
    """The encoder's search does nothing."""

    def round_trip(self, x, bits, *arguments, search=False, **options):
        return super().round_trip(x, bits, *arguments, search=False, **options)


class CoarseQueries(Library):
    """Queries of 8 bits instead of 16."""

    def attention(self, k, v, q, *arguments, **options):
        step = np.abs(q).max(axis=2, keepdims=True) / 127
        return super().attention(k, v, np.float32(np.rint(q / step) * step), *arguments, **options)


class OtherHead(Library):
    """Values of the head beside."""

    def attention(self, k, v, *arguments, **options):
        out, decoded_k, decoded_v = super().attention(k, np.roll(v, 1, axis=1), *arguments, **options)
        return out, decoded_k, np.roll(decoded_v, -1, axis=1)


class FirstTokenLost(Library):
    """The oldest token is left out."""

    def attention(self, k, v, *arguments, **options):
        if len(k) == 1:
            return super().attention(k, v, *arguments, **options)
        out, decoded_k, decoded_v = super().attention(k[1:], v[1:], *arguments, **options)
        return out, np.concatenate([k[:1], decoded_k]), np.concatenate([v[:1], decoded_v])


class MoreBytes(Library):
    """A float32 scale where the format says bfloat16."""

    def bytes(self, **fields):
        counted = super().bytes(**fields)
        counted.token_bytes += 4
        return counted


class _Quantizer:
    """A quantizer with faults put around its calls."""

    def __init__(self, quantizer):
        self._quantizer = quantizer

    def __getattr__(self, name):
        return getattr(self._quantizer, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._quantizer.close()


class FewerBits(Library):
    """A bit less than was asked for, from 2 bits on; groups twice as large."""

    def quantizer(self, dim, bits, *, family="scalar", group_size=0, **options):
        if family == "grouped":
            return super().quantizer(dim, bits, family=family, group_size=min(2 * group_size, 64), **options)
        return super().quantizer(dim, max(bits - 1, 1), family=family, **options)


class SketchTooLarge(Library):
    """The residual's estimate, a tenth too large."""

    def quantizer(self, dim, bits, *, family="scalar", **options):
        factor = 1.1 * 1.2533 if family == "prod" else 0
        return super().quantizer(dim, bits, family=family, sketch_factor=factor, **options)


class ProductsOff(Library):
    """Inner products a ten thousandth too large; search that forgets the best."""

    class Quantizer(_Quantizer):
        def inner_products(self, queries, codes):
            return self._quantizer.inner_products(queries, codes) * np.float32(1.0001) + np.float32(0.01)

        def search(self, queries, codes, k):
            scores, ids = self._quantizer.search(queries, codes, k + 1)
            return scores[:, 1:], ids[:, 1:]

    def quantizer(self, *arguments, **options):
        return self.Quantizer(super().quantizer(*arguments, **options))


class LevelsOfOthers(Library):
    """Calibrated levels 30 % too far out, and a factor twice as large."""

    class Quantizer(_Quantizer):
        def calibrate_levels(self, x, bits):
            levels, error = self._quantizer.calibrate_levels(x, bits)
            return dataclasses.replace(levels, levels=tuple(1.3 * v for v in levels.levels)), error

        def calibrate_sketch_factor(self, x):
            return 2 * self._quantizer.calibrate_sketch_factor(x)

    def quantizer(self, *arguments, **options):
        return self.Quantizer(super().quantizer(*arguments, **options))
