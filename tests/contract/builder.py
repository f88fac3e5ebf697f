# SPDX-License-Identifier: Apache-2.0
"""Writes one contract case: each method adds a step and lets the model (model.py) say what the answer is."""
import base64

import model
import numpy as np
from reference import tqkv_reference as ref

# How far a correct library may be from the model. README.md has the derivations.
DECODE_L2 = 2.0 ** -20
ATTEND_L2 = 2.0 ** -12
LSE_ABS = 2.0 ** -12
MERGE_L2 = 2.0 ** -20
MERGE_LSE_ABS = 2.0 ** -18
BF16_L2 = 2.0 ** -9

NAMES = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}


def gaussian(stream, *shape):
    """About normal, float32: a sum of 12 uniforms of the format's own integer stream, so that no bit depends
    on a library's generator."""
    count = int(np.prod(shape))
    words = ref.stream_words(ref.stream_base(4, stream, 0, 0), 0, 12 * count)
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0 ** -52 - 1
    return (uniform.reshape(12, count).sum(axis=0) / 2).reshape(shape).astype(np.float32)


def as_dtype(x, dtype):
    return ref.bf16_bits(x) if dtype == "bf16" else x.astype(NAMES[dtype])


class Case:
    number = 0

    def __init__(self, tensors, name, about, **marks):
        Case.number += 1
        self.stream = 1000 * Case.number
        self.tensors = tensors
        self.caches = {}
        self.case = {"name": name, "about": about, **marks, "steps": []}

    # ---- tensors

    def put(self, name, array):
        dtype = {"float32": "f32", "float16": "f16", "uint16": "bf16", "int32": "i32",
                 "uint64": "u64"}[array.dtype.name]
        key = f"{self.case['name']}.{name}"
        assert key not in self.tensors, key
        data = base64.b64encode(np.ascontiguousarray(array).astype(
            array.dtype.newbyteorder("<")).tobytes()).decode()
        self.tensors[key] = {"dtype": dtype, "shape": list(array.shape), "data": data}
        return key

    def random(self, *shape):
        self.stream += 1
        return gaussian(self.stream, *shape)

    def _unique(self, stem):
        self.serial = getattr(self, "serial", 0) + 1
        return f"{stem}{self.serial}"

    # ---- steps

    def step(self, op, **fields):
        self.case["steps"].append({"op": op, **{k: v for k, v in fields.items() if v is not None}})

    def fail(self, op, status, *text, **fields):
        """A step that must fail with this status and a text that holds every `text`, and change nothing."""
        self.step(op, **fields, status="TQ_ERROR_" + status, text=list(text))

    def create(self, cache="main", **config):
        self.config = config
        self.step("create", cache=None if cache == "main" else cache, config=config)
        self.caches[cache] = self.model = model.ModelCache(config)
        self.model.cache_name = None if cache == "main" else cache
        self.dtype = {model.F32: "f32", model.F16: "f16", model.BF16: "bf16"}[config["io_dtype"]]

    def use(self, cache):
        """Steps are of this cache from now on."""
        self.model = self.caches[cache]

    # ---- state

    def export(self, sequence, name, expect=None, equals=None, **part):
        """A part under a name. part: layers, kv_heads, tokens as [first, count], all where it is missing."""
        self.parts = getattr(self, "parts", {})
        self.parts[name] = self.model.sequences[sequence].copy()
        self.step("export", cache=self.model.cache_name, sequence=sequence, save=name, expect=expect,
                  equals=equals, **part)

    def import_part(self, sequence, name, last=True, source=None):
        """last: the sequence then has what the source had when the whole of it was exported."""
        self.step("import", cache=self.model.cache_name, sequence=sequence, part=name)
        if last:
            self.model.adopt(sequence, self.parts[name].copy())

    def save(self, sequence, name, equals=None, mac=None):
        self.step("save", cache=self.model.cache_name, sequence=sequence, save=name, equals=equals, mac=mac)

    def load(self, name, sequence, source, mac=None):
        """source: (cache, sequence) that was saved."""
        self.step("load", cache=self.model.cache_name, file=name, sequence=sequence, mac=mac)
        self.model.adopt(sequence, self.caches[source[0]].sequences[source[1]].copy())

    # ---- sequences

    def sequences(self, *names):
        for name in names:
            self.model.create(name)
            self.step("sequence_create", cache=self.model.cache_name, sequence=name)

    def fork(self, source, name):
        self.model.fork(source, name)
        self.step("sequence_fork", cache=self.model.cache_name, source=source, sequence=name)

    def copy(self, source, target, name):
        """A sequence of the current cache into another, which becomes the current one."""
        self.step("sequence_copy", cache=self.model.cache_name, source=source, target=target, sequence=name)
        copy = self.model.sequences[source].copy()
        self.model = self.caches[target]
        self.model.adopt(name, copy)

    def truncate(self, name, length):
        self.model.truncate(name, length)
        self.step("sequence_truncate", cache=self.model.cache_name, sequence=name, length=length)

    def flush(self, name):
        self.model.flush(name)
        self.step("sequence_flush", cache=self.model.cache_name, sequence=name)

    def remove(self, name, first, count):
        length = self.model.sequences[name].length
        self.model.select(name, [i for i in range(length) if not first <= i < first + count])
        self.step("sequence_remove",
                  cache=self.model.cache_name,
                  sequence=name,
                  first=first,
                  count=count)

    def select(self, name, positions):
        self.model.select(name, positions)
        self.step("sequence_select", cache=self.model.cache_name, sequence=name, positions=positions)

    def free(self, name):
        del self.model.sequences[name]
        self.step("sequence_free", cache=self.model.cache_name, sequence=name)

    def length(self, name):
        self.step("sequence_length",
                  cache=self.model.cache_name,
                  sequence=name,
                  expect=self.model.sequences[name].length)

    def plan(self, names, new_tokens, query_tokens=None, batch="main"):
        self.model.plan_step(names, new_tokens, query_tokens)
        self.step("plan",
                  cache=self.model.cache_name,
                  batch=batch,
                  sequences=names,
                  new_tokens=new_tokens,
                  query_tokens=query_tokens)

    def kv(self, new_tokens, layer=0):
        """v: None for a latent layer."""
        c = self.model.layers[layer]
        k = as_dtype(self.random(new_tokens, c["num_kv_heads"], c["head_dim"]), self.dtype)
        if c["latent"]:
            return k, None
        return k, as_dtype(self.random(new_tokens, c["num_kv_heads"], c["value_dim"]), self.dtype)

    def append(self, layer=0, k=None, v=None, batch="main"):
        if k is None:
            k, v = self.kv(sum(self.model.plan[1]), layer)
        self.model.append(layer, k, v)
        n = self._unique("")
        self.step("append",
                  cache=self.model.cache_name,
                  batch=batch,
                  layer=layer,
                  k=self.put("k" + n, k),
                  v=None if v is None else self.put("v" + n, v))

    def append_interleaved(self, layer=0):
        """k and v of a token side by side in one tensor [tokens][k heads, then v heads][dim]."""
        c, tokens = self.model.layers[layer], sum(self.model.plan[1])
        assert c["head_dim"] == c["value_dim"]
        k, v = self.kv(tokens, layer)
        self.model.append(layer, k, v)
        both = self.put(self._unique("kv"), np.concatenate([k, v], axis=1))
        token, head = 2 * c["num_kv_heads"] * c["head_dim"], c["head_dim"]
        self.step("append",
                  cache=self.model.cache_name,
                  batch="main",
                  layer=layer,
                  k=both,
                  k_offset=0,
                  v=both,
                  v_offset=c["num_kv_heads"] * head,
                  layout={
                      "key_token_stride": token, "key_head_stride": head, "value_token_stride": token,
                      "value_head_stride": head
                  })

    def queries(self, layer=0):
        """Queries that look at some key of their sequence, so that the softmax is not flat."""
        c, parts = self.model.layers[layer], []
        for name, _, count in zip(*self.model.plan):
            q = self.random(count, c["num_q_heads"], c["head_dim"]) if count else np.zeros(
                (0, c["num_q_heads"], c["head_dim"]), dtype=np.float32)
            keys = self.model.sequences[name].layers[c["source"]][0]
            if count and keys:
                aim = model.to_float(np.stack(keys))[np.arange(count) * 3 % len(keys)]
                q = q + np.float32(0.375) * np.repeat(aim, c["num_q_heads"] // c["num_kv_heads"], axis=1)
            parts.append(q)
        return as_dtype(np.concatenate(parts), self.dtype)

    def put_arrays(self, params, n):
        """The parameters with tensors in the place of arrays."""
        params = dict(params)
        if "tree_mask" in params:
            params["tree_words"] = len(params["tree_mask"][0])
        for name, dtype in (("sink_logits", np.float32), ("visible_begin", np.int32),
                            ("visible_end", np.int32), ("tree_mask", np.uint64),
                            ("alibi_slopes", np.float32)):
            if name in params:
                params[name] = self.put(name + n, np.array(params[name], dtype=dtype))
        return params

    def attend(self, layer=0, q=None, batch="main", head_major=False, workspace=None, **params):
        """head_major: q lies as [heads][tokens][dim], read through strides."""
        q = self.queries(layer) if q is None else q
        out, lse = self.model.attend(layer, q, params)
        n, c = self._unique(""), self.model.layers[layer]
        params = self.put_arrays(params, n)
        if self.dtype != "f32":
            params["out_dtype"] = model.F32
        stored_q = q
        if head_major:
            stored_q = q.transpose(1, 0, 2)
            params.update(q_token_stride=c["head_dim"], q_head_stride=len(q) * c["head_dim"])
        self.step("attend",
                  cache=self.model.cache_name,
                  batch=batch,
                  layer=layer,
                  q=self.put("q" + n, stored_q),
                  params=params or None,
                  workspace=workspace,
                  out=self.put("out" + n, out.astype(np.float32)),
                  out_l2=ATTEND_L2,
                  lse=self.put("lse" + n, lse.astype(np.float32)),
                  lse_abs=LSE_ABS)
        return out.astype(np.float32), lse.astype(np.float32)

    def read(self, name, first=0, count=None, layer=0, exact=False):
        count = self.model.sequences[name].length - first if count is None else count
        k, v = (as_dtype(x, self.dtype) for x in self.model.read(layer, name, first, count))
        n = self._unique("")
        tolerance = None if exact else {"f32": DECODE_L2, "bf16": BF16_L2}[self.dtype]
        self.step("read",
                  cache=self.model.cache_name,
                  layer=layer,
                  sequence=name,
                  first=first,
                  count=count,
                  k=self.put("rk" + n, k),
                  k_l2=tolerance,
                  v=self.put("rv" + n, v),
                  v_l2=tolerance)

    def centres(self, layer=0, key=None, value=None):
        self.model.centres[layer] = [key, value]
        self.step("set_centres",
                  layer=layer,
                  key_centre=None if key is None else self.put(self._unique("kc"), key),
                  value_centre=None if value is None else self.put(self._unique("vc"), value))

    def memory(self, **expect):
        self.step("memory", cache=self.model.cache_name, expect=expect)

    def config_bytes(self, **config):
        m = model.ModelCache(config)
        self.step("config_bytes",
                  config=config,
                  expect={"token_bytes": m.token_bytes(), "fp16_token_bytes": m.fp16_token_bytes()})

    def merge(self, outs, lses):
        out, lse = model.merge(outs, lses)
        n = self._unique("")
        self.step("merge",
                  outs=[self.put(f"part{n}_{i}", o) for i, o in enumerate(outs)],
                  lses=[self.put(f"part_lse{n}_{i}", x) for i, x in enumerate(lses)],
                  rows=outs[0].shape[0],
                  dim=outs[0].shape[1],
                  dtype=model.F32,
                  out=self.put("merged" + n, out.astype(np.float32)),
                  out_l2=MERGE_L2,
                  lse=self.put("merged_lse" + n, lse.astype(np.float32)),
                  lse_abs=MERGE_LSE_ABS)
