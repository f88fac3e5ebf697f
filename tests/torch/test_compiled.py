# SPDX-License-Identifier: Apache-2.0
"""opcheck, and torch.compile(fullgraph=True): a step's layers in one graph, with the bits of eager code,
however many rows the plan has; appends kept and in order."""
import pytest
import torch
import tqkv
from rig import DEVICE, DIM, KV_HEADS, LAYERS, Q_HEADS, Step, numbers, same_bits

ops = torch.ops.tqkv
WIDTH = DIM * Q_HEADS


def samples():
    step = Step(tokens=5)
    k, v, q = *step.kv(), step.q()
    step.bound.append(0, k, v)
    key, heads = step.key, torch.zeros(Q_HEADS, device=DEVICE)
    return step, {
        "append": (ops.append, (*key, 0, k, v), {}),
        "attend": (ops.attend, (*key, 0, q), {}),
        "attend with options": (ops.attend, (*key, 0, q), dict(out_dtype=torch.float32, sliding_window=3,
                                                               sink_logits=heads)),
        "attend without lse": (ops.attend, (*key, 0, q), dict(with_lse=False)),
        "attend_out": (ops.attend_out, (*key, 0, q, torch.empty_like(q), heads.expand(5, -1).clone()), {}),
        "attend_out without lse": (ops.attend_out, (*key, 0, q, torch.empty_like(q)), {}),
        "merge": (ops.merge, ([q, q + 1], [q[..., 0].contiguous(), q[..., 1].contiguous()]), {}),
        "read": (ops.read, (*key, 0, step.sequence.id, 1, 3), {}),
    }


@pytest.mark.parametrize("name", samples()[1])
def test_opcheck(name):
    step, all_samples = samples()
    operator, arguments, options = all_samples[name]
    results = torch.library.opcheck(operator.default, arguments, options)
    assert set(results.values()) == {"SUCCESS"} and len(results) >= 4, results


class Layers:
    """Attention layers of a model over a bound batch."""

    def __init__(self, step):
        self.bound = step.bound
        self.weights = [[numbers(10 * layer + i, *shape) / 16 for i, shape in enumerate(
            ((WIDTH, (Q_HEADS + 2 * KV_HEADS) * DIM), (WIDTH, WIDTH)))] for layer in range(LAYERS)]

    def __call__(self, x):
        for layer, (qkv, o) in enumerate(self.weights):
            q, k, v = (x @ qkv).unflatten(1, (-1, DIM)).split((Q_HEADS, KV_HEADS, KV_HEADS), 1)
            self.bound.append(layer, k, v)
            out = self.bound.attend(layer, q, softmax_scale=0.1)
            x = x + out.flatten(1) @ o
        return x


@pytest.mark.parametrize("backend", ("aot_eager", "inductor"))
def test_a_step_in_one_graph(backend):
    compiled, eager = Step(tokens=0, queries=0), Step(tokens=0, queries=0)
    step, plain = torch.compile(Layers(compiled), fullgraph=True, backend=backend), Layers(eager)
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for i, tokens in enumerate((7, 1, 1, 33, 1)):
            x = numbers(50 + i, tokens, WIDTH)
            compiled.plan(tokens), eager.plan(tokens)
            found, expected = step(x), plain(x)
            # The same operations on the same numbers; inductor may fuse products and sums of the projections.
            if backend == "aot_eager":
                assert same_bits(found, expected), i
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3), i
    for layer in range(LAYERS):
        found, expected = (s.sequence.read(layer, 0, 43, like=x) for s in (compiled, eager))
        assert all(torch.allclose(a, b, rtol=0.05, atol=0.05) for a, b in zip(found, expected))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3, "a number of rows is no new graph"


def test_appends_stay_and_stay_in_order():
    """Nothing but `state` says that attend depends on append, and that append has an effect."""
    def twice(key, k, v, q):
        ops.append(*key, 0, k, v)
        before = ops.attend(*key, 0, q)[0]
        ops.append(*key, 0, k * 2, v * 2)
        after = ops.attend(*key, 0, q)[0]
        ops.append(*key, 1, k, v)
        return before, after

    results = []
    for function in (twice, torch.compile(twice, fullgraph=True, backend="inductor")):
        step = Step(tokens=5)
        results.append(function(step.key, *step.kv(), step.q()))
        assert step.batch.attend(1, step.q()).abs().sum() > 0  # would be refused: planned, not appended
    assert all(map(same_bits, *results)) and not torch.equal(*results[0])


def test_results_written_into():
    def into(key, q, out, lse):
        ops.attend_out(*key, 0, q, out, lse)
        return out * 2

    step = Step(tokens=5)
    step.bound.append(0, *step.kv())
    expected, out = step.batch.attend(0, step.q(), lse=True), torch.zeros_like(step.q())
    lse = torch.zeros(5, Q_HEADS, device=DEVICE)
    doubled = torch.compile(into, fullgraph=True, backend="aot_eager")(step.key, step.q(), out, lse)
    assert same_bits(out, expected[0]) and same_bits(lse, expected[1]) and same_bits(doubled, 2 * out)


def test_graphs_refuse_what_does_not_fit():
    step = Step(tokens=5)
    k, v, q = *step.kv(), step.q()
    for text, call in (("k: is [5, 2, 32] of torch.float32, expected [rows, 2, 64]",
                        lambda: step.bound.append(0, k[..., :32], v)),
                       ("q: is [5, 4, 64] of torch.float16", lambda: step.bound.attend(0, q.half())),
                       ("layer = 9: must be 0 .. 1", lambda: step.bound.attend(9, q)),
                       ("batch = 123456: is closed", lambda: ops.attend(step.bound.state, 123456, 0, q))):
        torch._dynamo.reset()
        with pytest.raises(Exception) as refused:
            torch.compile(call, fullgraph=True, backend="aot_eager")()
        assert text in str(refused.value)
    # Shapes that fit, in another number than the plan's: refused when the graph runs.
    torch._dynamo.reset()
    run = torch.compile(lambda x: step.bound.attend(0, x), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="TQ_ERROR_INVALID_ARGUMENT: q: has shape"):
        run(q[:4])
