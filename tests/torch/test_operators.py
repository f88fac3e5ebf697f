# SPDX-License-Identifier: Apache-2.0
"""torch.ops.tqkv against the package's own calls: the same bits for every option, type and stride; what is
refused, and in which words."""
import pytest
import torch
import tqkv
from rig import DEVICE, DIM, KV_HEADS, LAYERS, Q_HEADS, Step, make_cache, numbers, same_bits

ops = torch.ops.tqkv
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def on_device(values, dtype):
    return torch.tensor(values, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("dtype", TYPES)
def test_append_and_read(dtype):
    ours, theirs = Step(dtype=dtype), Step(dtype=dtype)
    for layer in range(LAYERS):
        k, v = ours.kv(10 * layer)
        assert ops.append(*ours.key, layer, k, v) is None
        theirs.batch.append(layer, k, v)
        found = ops.read(*ours.key, layer, ours.sequence.id, 3, 20)
        expected = theirs.sequence.read(layer, 3, 20, like=k)
        assert all(map(same_bits, found, expected))
        assert all(map(same_bits, ours.bound.read(layer, ours.sequence, 3, 20), expected))


OPTIONS = {
    "plain": {},
    "scaled": dict(softmax_scale=0.3, logit_softcap=5.0),
    "window": dict(sliding_window=9),
    "history": dict(history_only=True),
    "sinks": dict(sink_logits=on_device([0.5, -1.0, 2.0, -torch.inf], torch.float32)),
    "alibi": dict(alibi_slopes=on_device([0.5, 0.25, 0.125, 0.0], torch.float32)),
    "ranges": dict(visible_begin=on_device([0, 3, 4, 40, 0], torch.int32),
                   visible_end=on_device([9, 40, 4, 41, 50], torch.int32)),
    "tree": dict(tree_mask=on_device([1, 3, 5, 9, 19], torch.int64)),
    "tree of unsigned words": dict(tree_mask=on_device([[1, 0], [3, 0], [5, 7], [9, 1], [19, 0]],
                                                       torch.uint64)),
    "full precision": dict(out_dtype=torch.float32),
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_attend(name, dtype):
    options, step = OPTIONS[name], Step(dtype=dtype)
    step.bound.append(0, *step.kv())
    step.plan(5)
    step.bound.append(0, *step.kv(7))
    q = step.q()
    theirs = dict(options)
    if "out_dtype" in options:
        theirs["out_dtype"] = "float32"
    expected = step.batch.attend(0, q, lse=True, **theirs)
    found = ops.attend(*step.key, 0, q, **options)
    assert all(map(same_bits, found, expected))
    out, lse = ops.attend(*step.key, 0, q, with_lse=False, **options)
    assert same_bits(out, expected[0]) and lse.shape == (0, Q_HEADS)
    assert same_bits(step.bound.attend(0, q, **options), expected[0])
    assert all(map(same_bits, step.bound.attend(0, q, lse=True, **options), expected))
    options = {key: value for key, value in options.items() if key != "out_dtype"}
    out, lse = torch.empty_like(expected[0]), torch.empty_like(expected[1])
    assert step.bound.attend(0, q, out=out, **options) is out
    assert same_bits(out, expected[0])
    result = step.bound.attend(0, q, out=out.zero_(), lse=lse, **options)
    assert result[0] is out and result[1] is lse and all(map(same_bits, result, expected))


def test_strides():
    step, plain = Step(), Step()
    rows = numbers(5, 40, Q_HEADS + 2 * KV_HEADS, DIM)  # a fused projection
    q, k, v = rows.split((Q_HEADS, KV_HEADS, KV_HEADS), 1)
    out = torch.zeros(Q_HEADS, 40, DIM, device=DEVICE).transpose(0, 1)
    step.bound.append(0, k, v)
    step.bound.attend(0, q, out=out)
    plain.batch.append(0, k.contiguous(), v.contiguous())
    assert same_bits(out, plain.batch.attend(0, q.contiguous()))


def test_layers_of_other_shapes_and_unlike_values():
    layers = [tqkv.Layer(), tqkv.Layer(num_q_heads=6, num_kv_heads=3, head_dim=192, value_dim=128)]
    step = Step(layers=layers)
    for layer in range(2):
        k, v = step.kv(layer=layer)
        step.bound.append(layer, k, v)
        q = step.q(layer=layer)
        assert same_bits(step.bound.attend(layer, q), step.batch.attend(layer, q))
    assert step.bound.attend(1, step.q(layer=1)).shape == (40, 6, 128)
    assert [x.shape[2] for x in step.bound.read(1, step.sequence, 0, 2)] == [192, 128]


@pytest.mark.parametrize("dtype", TYPES)
def test_merge(dtype):
    outs = [numbers(i, 5, Q_HEADS, DIM, dtype=dtype) for i in range(3)]
    lses = [numbers(10 + i, 5, Q_HEADS) for i in range(3)]
    lses[1][2] = -torch.inf
    expected = tqkv.merge_states(outs, lses, lse=True)
    assert all(map(same_bits, ops.merge(outs, lses), expected))
    assert all(map(same_bits, tqkv.torch.merge(iter(outs), iter(lses)), expected))
    assert ops.merge([outs[0].flatten(0, 1)], [lses[0].flatten()])[0].shape == (20, DIM)


def test_no_rows():
    step = Step(tokens=3)
    step.bound.append(0, *step.kv())
    step.plan(0, 0)
    step.bound.append(0, *step.kv())
    out, lse = ops.attend(*step.key, 0, step.q())
    assert out.shape == (0, Q_HEADS, DIM) and lse.shape == (0, Q_HEADS)


def test_a_bound_batch():
    step = Step()
    assert tqkv.torch.bind(step.batch) is step.bound and step.bound.batch is step.batch
    assert step.bound.state.device.type == DEVICE
    other = tqkv.torch.bind(step.cache.batch())
    assert other.number != step.bound.number
    number = other.number
    del other
    assert tqkv.torch.bind(step.batch).number != number
    step.batch.close()
    with pytest.raises(tqkv.InvalidState, match="batch: is closed"):
        tqkv.torch.bind(step.batch)
    with pytest.raises(RuntimeError, match=f"TQ_ERROR_INVALID_STATE: batch = {step.bound.number}: is closed"):
        step.bound.append(0, *step.kv())
    step = Step()
    step.cache.close()
    with pytest.raises(RuntimeError, match="TQ_ERROR_INVALID_STATE: .* is closed, or was never bound"):
        step.bound.attend(0, step.q())


def test_a_lost_batch_is_unbound():
    step = Step()
    number = tqkv.torch.bind(step.cache.batch()).number  # lost at once: destroyed by a later call
    step.cache.memory()
    with pytest.raises(RuntimeError, match=f"batch = {number}: is closed"):
        ops.append(step.bound.state, number, 0, *step.kv())


def test_what_is_refused():
    step = Step(tokens=5)
    k, v, q = *step.kv(), step.q()
    step.bound.append(0, k, v)
    good = step.bound.attend(0, q)
    wrong = {
        "k: has shape [4, 2, 64], expected [5, 2, 64] = [new tokens][num_kv_heads][head_dim]":
            lambda: step.bound.append(0, k[:4], v),
        "v: has shape [5, 128]": lambda: step.bound.append(0, k, v.flatten(1)),
        "k: has float16 elements, expected float32": lambda: step.bound.append(0, k.half(), v),
        "k: has strides of [128, 64, 2] elements": lambda: step.bound.append(
            0, numbers(1, 5, KV_HEADS, 2 * DIM).as_strided((5, 2, 64), (128, 64, 2)), v),
        "k: has strides of [0, 64, 1]": lambda: step.bound.append(0, k[:1].expand(5, -1, -1), v),
        "q: has shape [5, 4, 32], expected [5, 4, 64] = [query tokens][num_q_heads][head_dim]":
            lambda: step.bound.attend(0, q[:, :, :32]),
        "out: has shape [4, 4, 64]": lambda: step.bound.attend(0, q, out=torch.empty_like(q)[:4]),
        "out: is of float64": lambda: step.bound.attend(0, q, out=torch.empty_like(q).double()),
        "lse: has shape [5]": lambda: step.bound.attend(0, q, out=q.clone(), lse=numbers(1, 5)),
        "lse: must be contiguous": lambda: step.bound.attend(0, q, out=q.clone(), lse=numbers(1, 4, 5).T),
        "out_dtype: is of int32": lambda: step.bound.attend(0, q, out_dtype=torch.int32),
        "sink_logits: has shape [3]": lambda: step.bound.attend(0, q, sink_logits=numbers(1, 3)),
        "visible_end: has int64": lambda: step.bound.attend(
            0, q, visible_begin=torch.zeros(5, dtype=torch.int32, device=DEVICE),
            visible_end=torch.zeros(5, dtype=torch.int64, device=DEVICE)),
        "tree_mask: has shape [4]": lambda: step.bound.attend(
            0, q, tree_mask=torch.zeros(4, dtype=torch.int64, device=DEVICE)),
        "softmax_scale = 1e+60": lambda: step.bound.attend(0, q, softmax_scale=1e60),
        "layer = 2": lambda: step.bound.attend(2, q),
        "layer = 4294967296: does not fit 32 bits": lambda: step.bound.append(2**32, k, v),
        "outs, lses: 1 and 2 parts": lambda: ops.merge([q], [q[:, :, 0], q[:, :, 0]]),
        "lses[0]: has shape [5, 3]": lambda: ops.merge([q], [numbers(1, 5, 3)]),
        "first = 3": lambda: step.bound.read(0, step.sequence, 3, 9),
    }
    for text, call in wrong.items():
        with pytest.raises(RuntimeError) as refused:
            call()
        assert str(refused.value).startswith("TQ_ERROR_INVALID_ARGUMENT: "), text
        assert text in str(refused.value)
    with pytest.raises(RuntimeError, match="TQ_ERROR_INVALID_STATE: .*append its new tokens"):
        step.bound.attend(1, q)
    with pytest.raises(tqkv.InvalidArgument, match="batch: a Cache is neither a Batch nor a PagedStep"):
        tqkv.torch.bind(step.batch.cache)
    with pytest.raises(tqkv.InvalidArgument, match="out, lse: give both"):
        step.bound.attend(0, q, lse=numbers(1, 5, 4))
    step.sequence.truncate(2)
    with pytest.raises(RuntimeError, match="TQ_ERROR_INVALID_STATE: "):
        step.bound.append(0, k, v)
    step.sequence.truncate(0)
    step.plan(5)
    step.bound.append(0, k, v)
    assert same_bits(step.bound.attend(0, q), good)


def test_gradients_are_refused():
    step = Step(tokens=2)
    k, v, q = *step.kv(), step.q().requires_grad_()
    step.bound.append(0, k, v)
    with pytest.raises(tqkv.NotSupported, match="q: requires a gradient"):
        step.bound.attend(0, q)
    with torch.no_grad():
        assert not step.bound.attend(0, q).requires_grad
    with pytest.raises(tqkv.NotSupported, match="v: requires a gradient"):
        step.bound.append(0, k, v.clone().requires_grad_())


def test_two_caches_do_not_meet():
    first, second = Step(tokens=3), Step(tokens=3, key_bits=8, value_bits=8)
    for step in (first, second):
        step.bound.append(0, *step.kv())
    assert not torch.equal(first.bound.attend(0, first.q()), second.bound.attend(0, second.q()))
    first.cache.close()
    assert same_bits(second.bound.attend(0, second.q()), second.batch.attend(0, second.q()))


def test_on_torchs_current_stream():
    if DEVICE == "cpu":
        pytest.skip("TQKV_TEST_DEVICE is cpu")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        cache = make_cache(stream=stream)
        sequence, batch = cache.sequence(), cache.batch()
        batch.plan([sequence], [3], stream=stream)
        bound = tqkv.torch.bind(batch)
        k, v, q = numbers(1, 3, KV_HEADS, DIM), numbers(2, 3, KV_HEADS, DIM), numbers(3, 3, Q_HEADS, DIM)
        bound.append(0, k, v)
        out = torch.zeros_like(q)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            bound.append(0, k, v)
            bound.attend(0, q, out=out)
        graph.replay()
        assert same_bits(out, batch.attend(0, q, stream=stream))
