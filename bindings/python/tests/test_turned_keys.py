# SPDX-License-Identifier: Apache-2.0
"""Matrices that a calibration finds (turn_keys): against second moments in NumPy, and against a calibration
that is given them."""
import numpy as np
import pytest
import tqkv

Q_HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 64, 768
FLOOR = 1e-2  # of the mean energy, below each direction
HELD_OUT = np.arange(TOKENS) // 32 % 4 == 3


def prompts(seed=0, mixed=True):
    """Uneven keys and queries that no coordinate tells apart: turned by matrices of each kv head's own."""
    random = np.random.default_rng(seed)
    uneven = np.geomspace(4, 0.1, DIM) if mixed else np.ones(DIM)
    q, k, v = (random.standard_normal((TOKENS, heads, DIM)) for heads in (Q_HEADS, KV_HEADS, KV_HEADS))
    q, k = q * uneven, k * uneven
    for head in range(KV_HEADS if mixed else 0):
        turn = np.linalg.qr(random.standard_normal((DIM, DIM)))[0]
        other = turn @ np.linalg.qr(np.eye(DIM) + 0.05 * random.standard_normal((DIM, DIM)))[0]
        k[:, head] = k[:, head] @ turn + 2
        group = slice(head * Q_HEADS // KV_HEADS, (head + 1) * Q_HEADS // KV_HEADS)
        q[:, group] = q[:, group] @ other
    return [np.ascontiguousarray(x, np.float32) for x in (q, k, v)]


def calibrated(sides, matrix=None, **fields):
    found = tqkv.Calibration(1, Q_HEADS, KV_HEADS, DIM, **fields)
    if matrix is not None:
        found.set_key_matrix(0, matrix)
    for first in range(0, TOKENS, 200):  # in pieces
        found.feed(0, *(side[first:first + 200] for side in sides))
    return found


def matrix_of(calibration):
    whole = calibration.key_matrix(0)
    return None if whole is None else np.frombuffer(whole, np.float32).reshape(KV_HEADS, DIM, DIM)


def moments(sides, head):
    q, k = (side[~HELD_OUT].astype(np.float64) for side in sides[:2])
    group = Q_HEADS // KV_HEADS
    q = q[:, head * group:(head + 1) * group].reshape(-1, DIM)
    k = k[:, head] - k[:, head].mean(axis=0)
    found = k.T @ k / len(k), q.T @ q / len(k)
    return [moment + FLOOR * np.trace(moment) / DIM * np.eye(DIM) for moment in found]


def test_both_moments_become_one_diagonal():
    sides = prompts()
    with calibrated(sides, turn_keys=True) as found:
        matrices = matrix_of(found)
    for head, matrix in enumerate(matrices.astype(np.float64)):
        key, query = moments(sides, head)
        inverse = np.linalg.inv(matrix)
        keys, queries = matrix @ key @ matrix.T, inverse.T @ query @ inverse
        roots = np.sort(np.sqrt(np.linalg.eigvals(key @ query).real))[::-1]
        size = np.trace(key) / roots.sum()
        for turned, factor in ((keys, size), (queries, 1 / size)):
            np.testing.assert_allclose(np.diag(turned), factor * roots, rtol=1e-4)
            assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-5 * np.diag(turned).max()
        assert np.trace(keys) == pytest.approx(np.trace(key))
        # No basis has less: that of the queries' eigenvectors, say.
        basis = np.linalg.eigh(query)[1].T
        assert (np.sqrt(np.diag(basis @ key @ basis.T) * np.diag(basis @ query @ basis.T)).sum()
                >= roots.sum() * (1 - 1e-9))


@pytest.mark.parametrize("family", ("scalar", "trellis"))
def test_it_is_the_calibration_that_is_given_them(family, tmp_path):
    sides, fields = prompts(1), {"key_family": family}
    with calibrated(sides, turn_keys=True, **fields) as found, calibrated(sides, **fields) as plain:
        matrices = matrix_of(found)
        assert matrices is not None and plain.key_matrix(0) is None
        with calibrated(sides, matrices, **fields) as given, calibrated(sides, matrices, turn_keys=True,
                                                                       **fields) as both:
            for bits in (2, 3, 4):
                choices = [each.choose(bits, 4) for each in (found, given, both, plain)]
                assert choices[0].layers == choices[1].layers == choices[2].layers
                assert choices[1].error == choices[2].error == pytest.approx(choices[0].error, rel=1e-3)
                values = plain.choose(bits, 4).error  # of both sides; the values' part is the same
                assert choices[0].error < .9 * values
            np.testing.assert_allclose(*(np.frombuffer(each.centres(0)[0], np.float32) for each in
                                         (found, given)), atol=2e-4)
        found.save(tmp_path / "file")
        with tqkv.Calibration.load(tmp_path / "file") as again:
            assert again.choose(3, 4) == found.choose(3, 4) and again.key_matrix(0) == matrices.tobytes()
            layers = again.choose(3, 4).layers
            fields = {"num_q_heads": Q_HEADS, "num_kv_heads": KV_HEADS, "head_dim": DIM, "max_tokens": TOKENS}
            with tqkv.Cache(layers=layers, **fields) as cache, tqkv.Cache(layers=layers, **fields) as own:
                again.set_centres(cache)
                own.set_key_matrix(0, matrices)
                own.set_centres(0, *(np.frombuffer(side, np.float32).reshape(KV_HEADS, DIM)
                                     for side in again.centres(0)))
                assert cache.fingerprint() == own.fingerprint()


def test_logits_of_a_cache_are_nearer():
    """Of other tokens than those that were measured."""
    sides = prompts(2)
    q, k, v = (side[HELD_OUT] for side in sides)
    errors = []
    for turn_keys in (False, True):
        with calibrated(sides, turn_keys=turn_keys) as found:
            layers = found.choose(3, 3).layers
            with tqkv.Cache(layers=layers, num_q_heads=Q_HEADS, num_kv_heads=KV_HEADS, head_dim=DIM,
                            max_tokens=TOKENS) as cache:
                found.set_centres(cache)
                step, sequence = cache.batch(), cache.sequence()
                step.plan([sequence], new_tokens=[len(k)], query_tokens=[0])
                step.append(0, k, v)
                read = np.asarray(sequence.read(0, 0, len(k))[0])
        group = Q_HEADS // KV_HEADS
        errors.append(np.mean([np.square(q[:, h] @ (read - k)[:, h // group].T).mean()
                               for h in range(Q_HEADS)]))
    assert errors[1] < .7 * errors[0], errors


def test_keys_alike_in_all_directions_stay_as_they_are():
    with calibrated(prompts(3, mixed=False), turn_keys=True) as found:
        assert found.key_matrix(0) is None and found.choose(3, 3).layers


def test_what_is_found_changes_with_what_is_fed():
    first, second = prompts(4), prompts(5)
    with calibrated(first, turn_keys=True) as found:
        before = found.key_matrix(0)
        found.feed(0, *second)
        assert found.key_matrix(0) != before
    with tqkv.Calibration(1, Q_HEADS, KV_HEADS, DIM, turn_keys=True) as empty:
        with pytest.raises(tqkv.InvalidState, match="layer 0 was fed 0 tokens"):
            empty.key_matrix(0)
