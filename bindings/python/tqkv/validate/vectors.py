# SPDX-License-Identifier: Apache-2.0
"""Vectors on their own: the paper's algorithms, and what others add to them, by the library's own calls
(tqkv.Quantizer), from 1 bit on and at any dimension."""

import math

import numpy as np

from . import paper
from .codes import SAYS_GROUPS, SAYS_VECTORS, cosines
from .retrieval import overlap
from .rows import LIBRARY, PAPER, Estimate, half_unit
from .theorems import BF16_MSE, COSINE, GRID_COST, relative_errors, width

DIM = 128
LEAST_FACTORS = {"gaussian": math.sqrt(2 / math.pi) / (1 + 2 / math.pi), "orthogonal": math.sqrt(2 / math.pi)}
CHANNELS, LOUD = 32, 6.0  # of the outlier split; amplitude of its channels where it is worth while


def round_trip(context, x, bits, **fields):
    x = np.ascontiguousarray(x, dtype=np.float32)
    with context.codec.quantizer(x.shape[1], bits, **fields) as quantizer:
        return quantizer.decode(quantizer.encode(x)).astype(np.float64)


def distortion(context):
    """Table 1 from 1 bit to 5, up to d = 1536, under the paper's rule."""
    dims, coordinates = (64, 128, 1536), context.size(3e5, 4e6)
    for bits in range(1, 6):
        found, exact = {}, {}
        for dim in dims:
            context.progress(f"quantizer, d {dim}, {width(bits)}")
            x = paper.unit_vectors(int(max(200, coordinates // dim)), dim, context.rng(f"vectors {dim}"))
            found[dim] = Estimate.of(relative_errors(x, round_trip(context, x, bits, scale_rule="paper")))
            exact[dim] = paper.lloyd_max(dim, bits)[1]
        grid = GRID_COST.get(bits, 0.0)
        context.table.ours(
            all(found[d].agrees(exact[d] * (1 + grid / 2), exact[d] * grid / 2 + BF16_MSE) for d in dims),
            f"Table 1: the quantizer at {width(bits)} has the distortion of the exact codebook, d 64-1536",
            ", ".join(f"{found[d].mean:.5f}" for d in dims),
            source=PAPER,
            says=", ".join(f"{exact[d]:.5f}" for d in dims),
            tolerance=f"4 s.e. + int8 grid, up to {grid:g} of it + bfloat16 scale",
            figures={"bits": bits, "dims": dims, "mse": [found[d].mean for d in dims]},
        )


def sketches(context):
    """Theorem 2 by the library's PROD: bias and variance over seeds, Gaussian and orthogonal sketch."""
    for sketch, each, most in (("orthogonal", context.size(8000, 40000), 0.001),
                               ("gaussian", context.size(1000, 8000), None)):
        for bits in (2, 3, 4):
            rounds, rng = [], context.rng(f"prod {sketch} {bits}")
            for seed in range(16):
                context.progress(f"PROD, {sketch} sketch, {bits} bits, seed {seed + 1} of 16")
                x = paper.unit_vectors(each, DIM, rng)
                aside = rng.standard_normal((each, DIM))
                aside -= x * np.sum(x * aside, axis=1, keepdims=True)
                aside /= np.linalg.norm(aside, axis=1, keepdims=True)
                y = COSINE * x + math.sqrt(1 - COSINE ** 2) * aside
                decoded = round_trip(context, x, bits, family="prod", sketch=sketch, seed=seed,
                                     scale_rule="paper")
                rounds.append((np.mean(np.sum(y * (decoded - x), axis=1)) / COSINE,
                               DIM * np.mean(np.sum(aside * (decoded - x), axis=1) ** 2)))
            bias, spread = (Estimate.of(v) for v in zip(*rounds))
            # An orthogonal sketch is not quite uniformly random: its bias is small, not zero.
            context.table.ours(
                bias.agrees(0) if most is None else abs(bias.mean) + bias.tolerance < most,
                f"Theorem 2: PROD at {width(bits)} is unbiased, {sketch} sketch",
                f"{bias.mean:+.4%} \u00b1 {bias.error:.4%} of <y, x>",
                source=PAPER,
                says="E<y, x~> = <y, x>" + ("" if most is None else f"; S4: below {most:.1%}"),
                tolerance="4 s.e. over seeds" + ("" if most is None else f", all below {most:.1%}"),
                figures={
                    "plot": "bias", "series": f"tqkv PROD, {sketch} sketch", "bits": bits, "bias": bias.mean,
                    "error": bias.error
                },
            )
            residual, factor = paper.lloyd_max(DIM, bits - 1)[1], 1 / float(paper.lloyd_max(DIM, 1)[0][-1])
            share = (factor ** 2 - 1) * DIM / (DIM - 1) if sketch == "orthogonal" else math.pi / 2
            context.table.ours(
                spread.agrees(share * residual, share * residual * 2 / DIM),
                f"PROD at {width(bits)}: d times the variance of <y, x~>, {sketch} sketch",
                spread.text(4),
                says=f"{share * residual:.4f}",
                tolerance="4 s.e. + 2/d of it",
            )


def factors(context):
    """S2's closed form of the sketch's factor, by tq_calibrate_sketch_factor."""
    for sketch, exact in LEAST_FACTORS.items():
        found = []
        for dim in (64, 128, 256):
            x = paper.unit_vectors(context.size(2000, 10000), dim, context.rng(f"factor {dim}"))
            with context.codec.quantizer(dim, 3, family="prod", sketch=sketch, seed=dim) as quantizer:
                found.append(quantizer.calibrate_sketch_factor(x.astype(np.float32)))
        context.table.ours(
            all(abs(f - exact) < 0.02 for f in found),
            f"The least-squares factor of the {sketch} sketch, d 64, 128, 256",
            ", ".join(f"{f:.4f}" for f in found),
            source="S2",
            says=f"{exact:.4f}",
            tolerance="0.02, as S2's own test",
        )


def groups(context):
    """S2's Table 1 by the library's GROUPED codes."""
    v = context.rng("vector groups").standard_normal((context.size(3000, 40000), DIM)).astype(np.float32)
    for bits, group, says, size in SAYS_GROUPS:
        with context.codec.quantizer(DIM, bits, family="grouped", group_size=group) as quantizer:
            each = cosines(v.astype(np.float64), quantizer.decode(quantizer.encode(v)))
            stored = quantizer.code_bytes
        found, spread = Estimate.of(each), 4 * float(each.std()) / math.sqrt(SAYS_VECTORS)
        context.table.ours(
            found.agrees(float(says), spread + half_unit(says)) and stored == size,
            f"Grouped codes at {bits} bits in groups of {group}",
            f"{found.text(4)} at {stored} B",
            source="S2",
            says=f"cosine {says} at {size} B",
            tolerance=f"4 s.e. of both samples, {spread + found.tolerance:.4f}",
        )


def outliers(context):
    """The paper's 2.5 bits: 32 channels at 3, 96 at 2, which is 2.25, and what it is worth."""
    x = paper.unit_vectors(context.size(3000, 30000), DIM, context.rng("outliers"))
    loud = x.copy()
    loud[:, :CHANNELS] *= LOUD
    fields = dict(outliers=range(CHANNELS))
    with context.codec.quantizer(DIM, 2, **fields) as quantizer:
        stored = quantizer.code_bytes
    exact = (CHANNELS * 3 + (DIM - CHANNELS) * 2) / 8 + 4
    context.table.theirs(
        (stored - 4) * 8 / DIM == 2.5,
        "32 channels at 3 bits and 96 at 2 are 2.5 bits",
        f"{(stored - 4) * 8 / DIM} bits, {stored * 8 / DIM} with two scales",
        source=PAPER,
        says="2.5 bits",
        subject=LIBRARY,
        note="2.5 bits takes 64 channels at 3.",
    )
    gain = {name: Estimate.of(relative_errors(v, round_trip(context, v, 2, **fields)) -
                              relative_errors(v, round_trip(context, v, 3)))
            for name, v in (("loud", loud), ("even", x))}
    context.table.ours(
        stored == exact and gain["even"].mean > gain["even"].tolerance,
        "The outlier split at 2.25 bits is no match for 3 bits where channels are alike",
        f"distortion {gain['even'].mean:+.4f}; with 32 channels {LOUD:g} times as large "
        f"{gain['loud'].mean:+.4f}",
        says="it pays only where channels differ",
        tolerance="4 s.e., paired",
    )


def products(context):
    """Inner products are integer sums: against float64 products with the decoded vectors."""
    rng, worst = context.rng("products"), 0.0
    for dim, bits, fields in ((128, 4, {}), (1536, 2, {}), (100, 3, {"family": "prod"}),
                              (4096, 1, {}), (128, 8, {"family": "grouped", "group_size": 64})):
        x = rng.standard_normal((300, dim)).astype(np.float32)
        q = rng.standard_normal((50, dim)).astype(np.float32)
        with context.codec.quantizer(dim, bits, **fields) as quantizer:
            codes = quantizer.encode(x)
            decoded = quantizer.decode(codes).astype(np.float64)
            off = quantizer.inner_products(q, codes) - q.astype(np.float64) @ decoded.T
            ids = quantizer.search(q, codes, 10)[1]
            found = overlap(q.astype(np.float64) @ x.T.astype(np.float64), q @ decoded.T, 10).mean()
            sizes = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(decoded, axis=1)
        worst = max(worst, float(np.sqrt(np.mean((off / sizes) ** 2)) * math.sqrt(dim)))
        best = np.argsort(-(q.astype(np.float64) @ decoded.T), axis=1)[:, :10]
        same = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(ids, best)])
        context.table.ours(
            same >= 0.99,
            f"Search finds the records of the largest products, d {dim}, {width(bits)}"
            f"{', ' + fields['family'] if fields else ''}",
            f"{same:.2%} of the first 10 (of the exact vectors' own {found:.0%})",
            says="99 %: ties within rounding",
            tolerance="1 %",
        )
    # A coordinate of a query is rounded to 1/32767 of the largest, at most some 5 times the root mean square:
    # by 5 / 32767 / sqrt(12) of it, so a product by that times |q| |x| / sqrt(d).
    bound = 5 / 32767 / math.sqrt(12)
    context.table.ours(
        worst <= bound,
        "Integer inner products against float64 on the decoded vectors",
        f"{worst:.1e} |q| |x| / sqrt(d)",
        says=f"at most {bound:.1e}",
        tolerance="rounding of queries to 16 bits; root mean square",
    )


def retuned(context):
    """Lloyd-Max on captured vectors by tq_calibrate_levels, used by LEVELS codes on others."""
    count = context.size(2000, 20000)
    for name, channels in (("few channels hold the energy", 4), ("Gaussian", 0)):
        stretch = np.ones(DIM)
        stretch[:channels] = 20
        rng = context.rng(f"vectors retuned {name}")
        captured, others = ((rng.standard_normal((count, DIM)) * stretch).astype(np.float32)
                            for _ in range(2))
        for bits in (2, 4):
            with context.codec.quantizer(DIM, bits) as quantizer:
                levels, _ = quantizer.calibrate_levels(captured, bits)
            plain = relative_errors(others, round_trip(context, others, bits, scale_rule="paper"))
            tuned = relative_errors(others, round_trip(context, others, bits, family="levels", levels=levels))
            gain = Estimate.of((plain - tuned) / plain.mean())
            context.table.ours(
                gain.mean > gain.tolerance if channels else gain.agrees(0, 0.01),
                f"Levels of {width(bits)} calibrated on captured vectors, {name}",
                f"{plain.mean():.5f} -> {tuned.mean():.5f} on other vectors, {-gain.mean:+.1%}",
                says="better at the same bits" if channels else "no gain, within 1 %",
                tolerance="4 s.e., paired" if channels else "1 % + 4 s.e., paired",
            )


def run(context):
    for part in (distortion, sketches, factors, groups, outliers, products, retuned):
        part(context)
