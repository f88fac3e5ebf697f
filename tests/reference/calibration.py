# SPDX-License-Identifier: Apache-2.0
"""Calibration: what tqkv.h section 11 says is measured of prompts and chosen from it, in float64, with the
codes of this folder. Arrays: q [tokens, q heads, d], k and v [tokens, kv heads, d]."""
import dataclasses
import itertools

import numpy as np

from . import bands as key_bands
from . import encode as enc
from . import rotation as rot
from . import trellis

RUN, HELD_RUN = 32, 4  # every fourth run of 32 tokens is held out
MOST_LENGTHS = 4096    # tokens whose length counts in the median
GAIN = .98             # bands must make the error smaller by 2 %
UNIFORM, RATES = (2, 3, 4), (2, 2.5, 3, 3.5, 4)
# Mean squared error of 32 coordinates' codes by width, 0 .. 6 bits; trellis codes have .7 of it.
DISTORTION = (1, .557, .1195, .0278, .00645, .00154, .000386)
MOST_BITS = 6
JUDGED = 3             # bits by which centres are judged


def held_out(tokens, most):
    """(numbers of the tokens that count, those held out, at their places)."""
    numbers = np.arange(tokens)
    is_held = numbers // RUN % HELD_RUN == HELD_RUN - 1
    kept = []
    for seen, token in enumerate(numbers[is_held]):
        if seen < most:
            kept.append(token)
        elif (at := rot.mix(seen) % (seen + 1)) < most:  # all that come have the same chance to stay
            kept[at] = token
    return numbers[~is_held], np.array(kept)


def patterns(bands, total):
    """Widths of bands that fall and add up to the total, the widest first."""
    falling = itertools.combinations_with_replacement(range(MOST_BITS, 0, -1), bands)
    return [each for each in falling if sum(each) == total]


def in_turn(x):
    """The sum as a loop has it: orders whose estimates are alike are told apart by its last bit."""
    return np.cumsum(x)[-1]


def estimate(query, key, widths, trellis_family):
    """Of a head whose coordinates are in order: each band's rotation spreads its error over the band."""
    cost = 0.0
    for band, bits in enumerate(widths):
        share = .7 if key_bands.is_trellis(bits, trellis_family) else 1
        part = slice(32 * band, 32 * band + 32)
        cost += DISTORTION[bits] * share * in_turn(query[part]) * in_turn(key[part]) / 32
    return cost


@dataclasses.dataclass(frozen=True)
class Choice:
    bits: int         # 0: in bands
    widths: tuple
    rate: float       # bits of a coordinate
    head_bytes: int   # of a token and kv head
    error: float


@dataclasses.dataclass
class Layer:
    """What is measured of one layer."""
    key_length: float
    key_centre: np.ndarray
    value_centre: np.ndarray
    order: list
    keys: list
    values: list


def order_of(query, key, trellis_family):
    """By what coordinates weigh in logits, or in queries or keys alone, whichever the estimate at 3 bits
    prefers."""
    best, least = None, None
    for weight in (query * key, query, key):
        order = np.argsort(-weight, kind="stable")
        cost = min(estimate(query[order], key[order], widths, trellis_family)
                   for widths in patterns(-(-len(query) // 32), 3 * -(-len(query) // 32)))
        if best is None or cost < least:
            best, least = order, cost
    return best


def coded(x, side):
    coder = trellis if isinstance(side, trellis.TrellisSide) else enc
    encoded = coder.encode(np.ascontiguousarray(x), side)
    return enc.decode(encoded.codes, encoded.scales, side)


def logit_error(q, difference):
    """q [queries, group, d], difference [keys, d]: mean square of the logits, scaled by 1 / sqrt(d)."""
    products = np.einsum("qgd,kd->qgk", q.astype(np.float64), difference.astype(np.float64))
    return (products**2).mean() / q.shape[-1]


def plain_side(index, kind, is_trellis, bits, head, centre):
    side = trellis.TrellisSide if is_trellis else enc.SideConfig
    return side(len(centre), bits, kind=kind, layer=index, kv_head=head, centre=tuple(centre))


def judged_centre(index, kind, is_trellis, head, centre, x, error):
    """The centre, or zeros where codes of held-out tokens x are none the better for it."""
    errors = []
    for each in (centre, np.zeros_like(centre)):
        errors.append(error(coded(x, plain_side(index, kind, is_trellis, JUDGED, head, each)) - x))
    return centre if errors[0] < errors[1] else np.zeros_like(centre)


def measure(index, q, k, v, most=128, trellis_keys=False, trellis_values=False):
    counted, held = held_out(len(k), most)
    heads, dim = k.shape[1:]
    group, count = q.shape[1] // heads, len(counted)
    key_centre = (k[counted].astype(np.float64).sum(0) / count).astype(enc.F32)
    value_centre = (v[counted].astype(np.float64).sum(0) / count).astype(enc.F32)
    for head in range(heads):
        own = q[held][:, head * group:(head + 1) * group]
        key_centre[head] = judged_centre(index, enc.KEY, trellis_keys, head, key_centre[head],
                                         np.ascontiguousarray(k[held, head]),
                                         lambda difference: logit_error(own, difference))
        value_centre[head] = judged_centre(index, enc.VALUE, trellis_values, head, value_centre[head],
                                           np.ascontiguousarray(v[held, head]),
                                           lambda difference: (difference.astype(np.float64)**2).sum())
    query = (q[counted].astype(np.float64)**2).sum(0).reshape(heads, group, dim).sum(1) / count
    key = (k[counted].astype(np.float64)**2).sum(0) / count
    key = np.maximum(key - key_centre.astype(np.float64)**2, 0)
    lengths = np.sqrt((k[counted[:MOST_LENGTHS]].astype(np.float64)**2).sum((1, 2)) / heads).astype(enc.F32)
    layer = Layer(np.sort(lengths)[(len(lengths) - 1) // 2], key_centre, value_centre,
                  [order_of(query[h], key[h], trellis_keys) for h in range(heads)], [], [])
    bands = -(-dim // 32)

    def key_error(side_of):
        errors = []
        for head in range(heads):
            x = np.ascontiguousarray(k[held, head])
            own = q[held][:, head * group:(head + 1) * group]
            errors.append(logit_error(own, side_of(head, x) - x))
        return float(np.mean(errors))

    for bits in UNIFORM:
        def whole(head, x):
            return coded(x, plain_side(index, enc.KEY, trellis_keys, bits, head, key_centre[head]))

        error = key_error(whole)
        layer.keys.append(Choice(bits, (), bits, 4 * bands * bits + 2, error))
    # Every head counts alike.
    share = [1 / (query[h].sum() * key[h].sum()) for h in range(heads)]
    for rate in RATES:
        if rate * bands != int(rate * bands):
            continue
        total = int(rate * bands)
        def cost(widths):
            return sum(share[h] * estimate(query[h][order], key[h][order], widths, trellis_keys)
                       for h, order in enumerate(layer.order))

        widths = min(patterns(bands, total), key=cost)

        def in_bands(head, x):
            side = key_bands.Bands(dim, widths, tuple(layer.order[head]), trellis_keys, layer=index,
                                   kv_head=head, centre=tuple(key_centre[head]))
            codes, scales, _ = key_bands.encode(x, side)
            return key_bands.decode(codes, scales, side)

        layer.keys.append(Choice(0, widths, rate, 4 * total + 2 * bands, key_error(in_bands)))
    for bits in UNIFORM:
        wrong = square = 0.0
        for head in range(heads):
            x = np.ascontiguousarray(v[held, head])
            back = coded(x, plain_side(index, enc.VALUE, trellis_values, bits, head, value_centre[head]))
            wrong += ((back - x).astype(np.float64)**2).sum()
            square += (x.astype(np.float64)**2).sum()
        layer.values.append(Choice(bits, (), bits, enc.stored_dim(v.shape[2]) // 8 * bits + 2,
                                   float(wrong / square)))
    return layer


# ---- what is chosen of it

def of_bits(choices, bits):
    return next(each for each in choices if each.bits == bits)


def of_rate(choices, rate):
    """In bands where these serve, else the bits of all coordinates, rounded down."""
    plain = of_bits(choices, int(rate))
    banded = [each for each in choices if each.bits == 0 and each.rate == rate]
    return banded[0] if banded and banded[0].error <= GAIN * plain.error else plain


def ladder(choices):
    """From the fewest bytes up, each better than the one before."""
    kept = []
    for each in sorted(choices, key=lambda choice: choice.head_bytes):
        if not kept or each.error < kept[-1].error:
            kept.append(each)
    return kept


def raw_layers(layers, outlier):
    lengths = sorted(layer.key_length for layer in layers)
    longest = float(lengths[(len(layers) - 1) // 2]) * outlier
    return [layer.key_length > longest for layer in layers]


def choose(layers, key_bits=0, value_bits=0, max_error=0.0, outlier=4):
    """[(key, value)] of layers, None = raw."""
    raw = raw_layers(layers, outlier)
    if max_error == 0:
        return [None if is_raw else (of_rate(layer.keys, key_bits), of_bits(layer.values, value_bits))
                for layer, is_raw in zip(layers, raw)]
    sides = [ladder(choices) for layer, is_raw in zip(layers, raw) if not is_raw
             for choices in ([of_rate(layer.keys, rate) for rate in RATES], layer.values)]
    at = [0] * len(sides)
    while sum(side[i].error for side, i in zip(sides, at)) > max_error * len(layers):
        # The step that gains most for its bytes.
        steps = [((side[i].error - side[to].error) / (side[to].head_bytes - side[i].head_bytes), number, to)
                 for number, (side, i) in enumerate(zip(sides, at)) for to in range(i + 1, len(side))]
        if not steps:
            raise ValueError("4 bits in all layers do not reach it")
        _, number, to = max(steps, key=lambda step: (step[0], -step[1], -step[2]))
        at[number] = to
    chosen = iter([side[i] for side, i in zip(sides, at)])
    return [None if is_raw else (next(chosen), next(chosen)) for is_raw in raw]
