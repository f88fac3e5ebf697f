# SPDX-License-Identifier: Apache-2.0
"""Claims about codes: coding twice (S3), grouped values (S2's Table 1), the factor of the sketch (S2)."""

import math

import numpy as np

from . import paper, retune
from .rows import NUMPY, Estimate, as_printed, half_unit
from .theorems import relative_errors, width

DIM = 128
# S2's Table 1: bits, group, cosine, bytes a token.
SAYS_GROUPS = (
    (2, 32, "0.9329", 48),
    (2, 16, "0.9521", 64),
    (3, 32, "0.9864", 64),
    (3, 16, "0.9905", 80),
    (4, 16, "0.9979", 96),
)
SAYS_VECTORS = 256
# Widths of tqkv whose bytes are the same but for the 2 of the scale, or fewer.
AGAINST = {48: 2, 64: 4, 80: 5, 96: 6}


def cosines(x, decoded):
    return np.sum(x * decoded, axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(decoded, axis=1))


def coded_bytes(dim, bits):
    """Of a vector: codes and a bfloat16 scale."""
    return dim * bits // 8 + 2


def fixed_point(context):
    rng = context.rng("fixed point")
    x = rng.standard_normal((context.size(4000, 40000), DIM)).astype(np.float32)
    for bits in (2, 3, 4, 6, 8):
        context.progress(f"coding twice, {bits} bits")
        once = context.codec.round_trip(x, bits, rule="ls", search=True)
        twice = context.codec.round_trip(once, bits, rule="ls", search=True)
        same = np.all(once == twice, axis=1).mean()
        drift = abs(float(np.linalg.norm(twice) / np.linalg.norm(once)) - 1)
        context.table.ours(
            same >= 0.99 and drift < 1e-3,
            f"Coding twice at {bits} bits changes nothing for almost all vectors",
            f"{same:.2%} bit for bit, length of all {drift:.1e} off",
            says="almost every vector (FORMAT.md 6)",
            tolerance="99 %, 0.1 % of the length",
        )
    for bits in (2, 4):
        quantiser = paper.Mse(DIM, bits, rng)
        codes, norms = quantiser.encode(x.astype(np.float64))
        again, shorter = quantiser.encode(quantiser.decode((codes, norms)))
        same, ratio = np.all(codes == again, axis=1).mean(), float(np.mean(shorter / norms))
        context.table.theirs(
            same == 1,
            f"Quantising twice at {bits} bits is a fixed point: the indices are the same",
            f"{same:.2%} of vectors; the norm, measured anew, shrinks to {ratio:.4f} each time",
            source="S3",
            says="indices identical",
            tolerance="none",
            note=(
                "The indices alone: the vector is no fixed point, it loses its distortion in length each time"
                " (tqkv's least-squares scale does not)."),
        )


def groups(context):
    rng = context.rng("groups")
    v = rng.standard_normal((context.size(3000, 40000), DIM))
    for bits, group, says, size in SAYS_GROUPS:
        context.progress(f"groups of {group}, {bits} bits")
        each = cosines(v, paper.group_minmax(v, bits, group))
        found = Estimate.of(each)
        # The source's own sample, of 256 vectors, has its error as well.
        spread = 4 * float(each.std()) / math.sqrt(SAYS_VECTORS)
        context.table.theirs(
            found.agrees(float(says), spread + half_unit(says)) and
            paper.group_bytes(DIM, bits, group) == size,
            f"Table 1: values at {bits} bits in groups of {group}",
            f"{found.text(4)} at {paper.group_bytes(DIM, bits, group)} B",
            source="S2",
            says=f"cosine {says} at {size} B",
            tolerance=f"4 s.e. of both samples, {spread + found.tolerance:.4f}",
            figures={
                "plot": "values",
                "series": "min/max groups (S2)",
                "bytes": size,
                "cosine": found.mean,
                "label": f"{bits} bits / {group}",
            },
        )
    for size, bits in AGAINST.items():
        best = max(float(says) for _, _, says, other in SAYS_GROUPS if other == size)
        found = Estimate.of(cosines(v, context.codec.round_trip(v, bits, "value", "unbiased", search=True)))
        context.table.ours(
            found.mean - found.tolerance > best,
            f"Rotated codes beat groups at {size} B",
            f"{found.text(4)} at {coded_bytes(DIM, bits)} B ({bits} bits)",
            says=f"more than {best}",
            tolerance="4 s.e.; 2 B more at most",
            figures={
                "plot": "values",
                "series": "tqkv",
                "bytes": coded_bytes(DIM, bits),
                "cosine": found.mean,
                "label": f"{bits} bits",
            },
        )


def sketch_factor(context):
    """S2's calibrated factor of the sketch, in closed form, and what it is worth."""
    rng, exact = context.rng("sketch factor"), math.sqrt(2 / math.pi) / (1 + 2 / math.pi)
    found = {}
    for dim in (64, 128, 256):
        context.progress(f"factor of the sketch, d {dim}")
        x = paper.unit_vectors(context.size(2000, 10000), dim, rng)
        found[dim] = Estimate.of([paper.best_sketch_factor(paper.Prod(dim, 3, rng), x) for _ in range(6)])
    context.table.theirs(
        all(f.agrees(exact, 0.02) for f in found.values()),
        "The least-squares factor of the sketch is 0.4875",
        ", ".join(f"{f.text(4)} (d {d})" for d, f in found.items()),
        source="S2",
        says="0.4875",
        tolerance="4 s.e. + 0.02, as its own test",
    )
    context.table.theirs(
        found[256].mean > 0.9 * math.sqrt(math.pi / 2),
        "It tends to the unbiased sqrt(pi/2) as d grows",
        f"{found[64].mean:.3f}, {found[128].mean:.3f}, {found[256].mean:.3f} at d 64, 128, 256",
        source="S2",
        says="to 1.2533",
        tolerance="",
        note="With a d x d sketch it stays at sqrt(2/pi) / (1 + 2/pi) for every d.",
    )
    context.progress("sketch against one more bit")
    x = paper.unit_vectors(context.size(3000, 20000), DIM, rng)
    plain = Estimate.of(relative_errors(x, context.codec.round_trip(x, 3)))
    for orthogonal in (False, True):
        prod = paper.Prod(DIM, 3, rng, orthogonal)
        unbiased = Estimate.of(relative_errors(x, prod.round_trip(x)))
        prod.factor = paper.best_sketch_factor(prod, x)
        least = Estimate.of(relative_errors(x, prod.round_trip(x)))
        context.table.ours(
            plain.mean + plain.tolerance < least.mean - least.tolerance,
            "3-bit scalar codes beat 2 bits + sketch at the same bits,"
            f" {'orthogonal' if orthogonal else 'Gaussian'}",
            f"{plain.mean:.4f} against {unbiased.mean:.4f} (unbiased), {least.mean:.4f} (least squares)",
            says="lower distortion",
            tolerance="4 s.e. of both",
            figures={
                "orthogonal": orthogonal,
                "scalar": plain.mean,
                "unbiased": unbiased.mean,
                "least": least.mean,
            },
        )


def retuned(context):
    """Codebooks retuned on captured vectors, judged on other vectors of their kind."""
    count = context.size(1500, 20000)
    kinds = (("few channels hold the energy", 4, 20.0), ("Gaussian", 0, 1.0))
    for name, channels, factor in kinds:
        rng = context.rng(f"retuned {name}")
        stretch = np.ones(DIM)
        stretch[:channels] = factor
        captured, others = (rng.standard_normal((count, DIM)) * stretch for _ in range(2))
        seen = retune.coordinates(captured)
        for bits in (3, 4, 5):
            context.progress(f"codebook retuned at {width(bits)}")
            book = retune.retune_coordinates(seen, bits, DIM)
            plain, tuned = (
                relative_errors(
                    others, context.codec.round_trip(others, bits, rule="ls", search=True, codebook=b))
                for b in (None, book))
            gain = Estimate.of((plain - tuned) / plain.mean())
            # Gaussian coordinates: nothing to gain, and noise of the capture to lose.
            ok = gain.mean > gain.tolerance if channels else gain.agrees(0, 0.01)
            context.table.ours(
                ok,
                f"A codebook of {width(bits)} retuned on captured vectors, {name}",
                f"{plain.mean():.5f} -> {tuned.mean():.5f} on other vectors, {-gain.mean:+.1%}",
                says="better at the same bits" if channels else "no gain, within 1 %",
                tolerance="4 s.e., paired" if channels else "1 % + 4 s.e., paired",
                note=f"{count:,} vectors of {DIM}; tqkv.validate.retune, for Config's codebooks.",
                figures={"bits": bits, "kind": name, "plain": plain.mean(), "retuned": tuned.mean()},
            )


def run(context):
    fixed_point(context)
    groups(context)
    sketch_factor(context)
    retuned(context)
