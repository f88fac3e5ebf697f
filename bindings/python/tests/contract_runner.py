# SPDX-License-Identifier: Apache-2.0
"""Runs the cases of tests/contract/cases.json through the package. `to_device` and `to_numpy` let the same
cases run on a GPU."""
import base64
import ctypes
import json
import math
from pathlib import Path

import contract_travel
import numpy as np
import tqkv
from tqkv import _abi, _ffi

CASES = Path(__file__).resolve().parents[3] / "tests" / "contract" / "cases.json"
NUMPY_TYPES = {"f32": "<f4", "f16": "<f2", "bf16": "<u2", "i32": "<i4", "u64": "<u8"}
PACKAGE_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i32": "int32", "u64": "uint64"}


def load():
    data = json.loads(CASES.read_text())
    assert data["version"] == 1
    return data


class Host:
    """Tensors as NumPy arrays; bfloat16 as marked bits."""

    device = "cpu"

    def put(self, array, dtype):
        return tqkv.as_buffer(array, dtype) if dtype == "bfloat16" else array

    def empty(self, shape, dtype):
        return self.put(
            np.full(shape, 0xFFFF, "uint16") if dtype == "bfloat16" else np.full(shape, np.nan, dtype), dtype)

    def take(self, array):
        """float64 array of the values."""
        if isinstance(array, tqkv.Buffer):
            array = (array.owner.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return np.asarray(array).astype(np.float64)

    def memory(self, num_bytes):
        whole = np.zeros(num_bytes + 256, "uint8")
        skip = -whole.ctypes.data % 256
        return whole[skip:skip + num_bytes]


class Runner(contract_travel.State, contract_travel.Paged):
    def __init__(self, data, arrays=None):
        self.data, self.arrays = data, arrays or Host()

    def tensor(self, name):
        t = self.data["tensors"][name]
        return np.frombuffer(base64.b64decode(t["data"]),
                             NUMPY_TYPES[t["dtype"]]).reshape(t["shape"]), PACKAGE_TYPES[t["dtype"]]

    def put(self, name):
        return self.arrays.put(*self.tensor(name))

    def run(self, case):
        self.caches, self.batches, self.sequences, self.prints, self.opened = {}, {}, {}, {}, []
        self.parts, self.files, self.codecs, self.blocks, self.steps = {}, {}, {}, {}, {}
        try:
            for number, step in enumerate(case["steps"], 1):
                try:
                    self.step(step)
                except Exception as error:
                    raise AssertionError(
                        f"{case['name']}, step {number} ({step['op']}): {type(error).__name__}: {error}"
                    ) from error
        finally:
            for cache in self.opened:
                cache.close()

    def step(self, step):
        call = getattr(self, {"import": "import_"}.get(step["op"], step["op"]))
        if "status" not in step:
            call(step)
            return
        try:
            call(step)
        except tqkv.Error as error:
            assert error.status == _abi.CONSTANTS[step["status"]], f"gave status {error.status}: {error}"
            assert type(error) is tqkv.errors.BY_STATUS[error.status]
            for part in step["text"]:
                assert part in error.text, f"{part!r} is not in {error.text!r}"
            return
        raise AssertionError(f"succeeded, expected {step['status']}")

    def compare(self, step, field, actual):
        if field not in step:
            return
        expected, dtype = self.tensor(step[field])
        if dtype == "bfloat16":
            expected = (expected.astype(np.uint32) << np.uint32(16)).view(np.float32)
        expected, actual = expected.astype(np.float64).reshape(-1), self.arrays.take(actual).reshape(-1)
        assert expected.shape == actual.shape, field
        finite = np.isfinite(expected)
        assert np.array_equal(actual[~finite], expected[~finite]), f"{field}: infinities differ"
        off, want = actual[finite] - expected[finite], expected[finite]
        if field + "_l2" in step:
            error = np.linalg.norm(off)
            assert error <= step[field + "_l2"] * np.linalg.norm(
                want), f"{field}: off by {error / np.linalg.norm(want):.3g} of its norm"
        else:
            assert np.all(np.abs(off) <= step.get(field +
                                                  "_abs", 0)), f"{field}: off by {np.max(np.abs(off)):.3g}"

    # ---- names

    def cache(self, step):
        return self.caches[step.get("cache", "main")]

    def named(self, step, name):
        return self.sequences[step.get("cache", "main"), name]

    def batch(self, step):
        key = step.get("cache", "main"), step["batch"]
        if key not in self.batches:
            self.batches[key] = self.cache(step).batch()
        return self.batches[key]

    # ---- steps

    def config(self, step):
        fields = dict(step["config"])
        device_type, device_id = fields.pop("device_type", 0), fields.pop("device_id", 0)
        for side in ("key_codebook", "value_codebook"):
            if side in fields:
                fields[side] = tqkv.Codebook(**fields[side])
        if "layers" in fields:
            fields["layers"] = [self.layer_config(layer, fields) for layer in fields["layers"]]
        config = tqkv.Config(device=self.arrays.device, **fields)
        if device_type or device_id:
            # A device that a string cannot name: through the raw struct.
            config = _RawDevice(config, device_type, device_id)
        return config

    @staticmethod
    def layer_config(fields, common):
        own = {**fields, "shares_layer": fields.get("shares_layer", 0) - 1
               if fields.get("shares_layer") else None}
        if bands := fields.get("key_bands"):
            order, dim = bands.get("order"), fields.get("head_dim") or common.get("head_dim")
            rows = order and [tuple(order[at:at + dim]) for at in range(0, len(order), dim)]
            own["key_bands"] = tqkv.KeyBands(tuple(bands["bits"]), rows and tuple(rows))
        return tqkv.Layer(**own)

    def create(self, step):
        config = self.config(step)
        reasons = "\n".join(config.check())
        assert bool(reasons) == ("status" in step), reasons
        assert all(part in reasons for part in step.get("text", [])), reasons
        cache = tqkv.Cache(config)
        self.caches[step.get("cache", "main")] = cache
        self.opened.append(cache)

    def config_bytes(self, step):
        have = self.config(step).bytes()
        for name, value in step["expect"].items():
            assert getattr(have, name) == value, name

    def memory(self, step):
        have = self.cache(step).memory()
        for name, value in step["expect"].items():
            assert math.isclose(
                getattr(have, name), value,
                rel_tol=1e-12 if name == "compression" else 0), f"{name} = {getattr(have, name)}"

    def fingerprint(self, step):
        value = (self.codec(step) if "codec" in step else self.cache(step)).fingerprint()
        if "save" in step:
            self.prints[step["save"]] = value
        assert "equals" not in step or value == self.prints[step["equals"]]
        assert "differs" not in step or value != self.prints[step["differs"]]

    def check(self, step):
        assert self.cache(step).check() == step["expect"]

    def set_centres(self, step):
        key, value = (self.tensor(step[name])[0] if name in step else None
                      for name in ("key_centre", "value_centre"))
        self.cache(step).set_centres(step["layer"], key, value)

    def sequence_create(self, step):
        self.sequences[step.get("cache", "main"), step["sequence"]] = self.cache(step).sequence()

    def sequence_fork(self, step):
        self.sequences[step.get("cache", "main"), step["sequence"]] = self.named(step, step["source"]).fork()

    def sequence_copy(self, step):
        copy = self.named(step, step["source"]).copy(self.caches[step["target"]])
        self.sequences[step["target"], step["sequence"]] = copy

    def sequence_truncate(self, step):
        self.named(step, step["sequence"]).truncate(step["length"])

    def sequence_flush(self, step):
        self.named(step, step["sequence"]).flush()

    def reserve(self, step):
        self.cache(step).reserve(step["max_tokens"])

    def sequence_remove(self, step):
        self.named(step, step["sequence"]).remove(step["first"], step["count"])

    def sequence_select(self, step):
        self.named(step, step["sequence"]).select(step["positions"])

    def sequence_free(self, step):
        self.named(step, step["sequence"]).free()

    def sequence_length(self, step):
        assert len(self.named(step, step["sequence"])) == step.get("expect")

    def sequence_flags(self, step):
        assert self.named(step, step["sequence"]).flags == step["expect"]

    def plan(self, step):
        self.batch(step).plan([self.named(step, name) for name in step["sequences"]], step["new_tokens"],
                              step.get("query_tokens"))

    def layer(self, step):
        """Its shape; of a layer that there is not: the first one's."""
        layers, number = self.cache(step).config.layers, step["layer"]
        return layers[number if 0 <= number < len(layers) else 0]

    def append(self, step):
        c, sides = self.layer(step), []
        for name, dim in (("k", c.head_dim), ("v", c.value_dim)):
            if name not in step:  # v, of a latent layer
                continue
            if "layout" in step:
                side = {"k": "key", "v": "value"}[name]
                array, dtype = self.tensor(step[name])
                token, head = step["layout"][side + "_token_stride"], step["layout"][side + "_head_stride"]
                flat = np.ascontiguousarray(array).reshape(-1)[step[name + "_offset"]:]
                tokens = array.shape[0]
                strides = [flat.itemsize * step for step in (token, head, 1)]
                view = np.lib.stride_tricks.as_strided(flat, (tokens, c.num_kv_heads, dim), strides)
                sides.append(self.arrays.put(view, dtype))
            else:
                sides.append(self.put(step[name]))
        self.batch(step).append(step["layer"], *sides)

    def attend(self, step):
        batch, c, params = self.batch(step), self.layer(step), dict(step.get("params", {}))
        q, dtype = self.tensor(step["q"])
        if "q_head_stride" in params:
            assert (params.pop("q_token_stride"), params.pop("q_head_stride")) == (c.head_dim,
                                                                                   q.shape[1] * c.head_dim)
            q = q.transpose(1, 0, 2)
        self.put_arrays(params)
        q, out, lse = self.arrays.put(q, dtype), None, True
        if "out" in step:
            out = self.arrays.empty((q.shape[0], c.num_q_heads, c.value_dim), "float32")
            lse = self.arrays.empty((q.shape[0], c.num_q_heads), "float32")
        if "workspace" in step:
            params["workspace"] = self.arrays.memory(1 if step["workspace"] == "short" else
                                                     self.cache(step).workspace_bytes())
        out, lse = batch.attend(step["layer"], q, out=out, lse=lse, **params)
        self.compare(step, "out", out)
        self.compare(step, "lse", lse)

    def put_arrays(self, params):
        for name in ("sink_logits", "visible_begin", "visible_end", "tree_mask", "alibi_slopes"):
            if name in params:
                params[name] = self.put(params[name])
        words = params.pop("tree_words", None)  # the package sees it in the mask's shape
        assert words is None or words == params["tree_mask"].shape[1]
        params["out_dtype"] = {1: "float32"}.get(params.get("out_dtype"), params.get("out_dtype"))

    def read(self, step):
        c, count, io_dtype = self.layer(step), max(step["count"], 0), self.cache(step).config.io_dtype
        k, v = (self.arrays.empty((count, c.num_kv_heads, dim), io_dtype)
                for dim in (c.head_dim, c.value_dim))
        k, v = self.named(step, step["sequence"]).read(step["layer"], step["first"], step["count"], k=k, v=v)
        self.compare(step, "k", k)
        self.compare(step, "v", v)

    def merge(self, step):
        outs, lses = ([self.put(name) for name in step[field]] for field in ("outs", "lses"))
        if step["dtype"] != 1 or step["rows"] < 0:
            # What the package's own call cannot even say: through the raw one.
            library = _ffi.load_library()
            pointers = [
                (ctypes.c_void_p * len(a))(*(tqkv.as_buffer(x).pointer for x in a)) for a in (outs, lses)
            ]
            out = tqkv.as_buffer(self.arrays.empty((64,), "float32"))
            tqkv.config.check(
                library,
                library.tq_merge_states(len(outs), *pointers, step["rows"], step["dim"], step["dtype"],
                                        out.pointer, None, out.device_type, out.device_id, None))
        out, lse = tqkv.merge_states(outs, lses, lse=True)
        self.compare(step, "out", out)
        self.compare(step, "lse", lse)


class _RawDevice(tqkv.Config):
    def __init__(self, config, device_type, device_id):
        self.__dict__.update(config.__dict__, raw=(device_type, device_id))

    def _device(self):
        return self.raw
