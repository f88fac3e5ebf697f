# SPDX-License-Identifier: Apache-2.0
"""Steps of state that travels and of an engine's pages, for the runner of the contract cases."""
import dataclasses
import io

import numpy as np
import tqkv

ORDERS = {1: "blocks", 2: "heads", 3: "sideways"}


class CaseMac:
    """The MAC of the cases (README): 16 bytes."""

    digest_size = 16

    def __init__(self, key):
        self.key, self.at, self.tag = key, 0, [0] * 16

    def update(self, data):
        for byte in data:
            self.tag[self.at % 16] = (31 * self.tag[self.at % 16] + byte + self.key) % 256
            self.at += 1

    def digest(self):
        return bytes(self.tag)


class State:
    def export(self, step):
        part = {name: range(step[name][0], sum(step[name])) for name in ("layers", "kv_heads", "tokens")
                if name in step}
        sequence = self.named(step, step["sequence"])
        state, memory = self.cache(step).export_sequence(sequence, **part)
        for name, value in step.get("expect", {}).items():
            assert getattr(state, name) == value, f"{name} = {getattr(state, name)}"
        assert "equals" not in step or memory == self.parts[step["equals"]][1]
        self.parts[step["save"]] = state, memory

    def import_(self, step):
        (state, memory), change = self.parts[step["part"]], dict(step.get("change", {}))
        memory = memory[:len(memory) - change.pop("cut", 0)]
        if "identity" in change:
            change["identity"] ^= state.identity
        state = dataclasses.replace(state, **change)
        self.cache(step).import_sequence(state, memory, self.named(step, step["sequence"]))

    def _mac(self, step):
        return CaseMac(step["mac"]) if "mac" in step else None

    def save(self, step):
        file = io.BytesIO()
        self.cache(step).save(self.named(step, step["sequence"]), file, mac=self._mac(step))
        assert "equals" not in step or file.getvalue() == self.files[step["equals"]]
        self.files[step["save"]] = file.getvalue()

    def load(self, step):
        data, change = bytearray(self.files[step["file"]]), step.get("change", {})
        data[change.get("at", 0)] ^= change.get("xor", 0)
        file = io.BytesIO(data[:len(data) - change.get("cut", 0)])
        loaded = self.cache(step).load(file, mac=self._mac(step))
        assert file.read() == b"" or "mac" not in step
        self.sequences[step.get("cache", "main"), step["sequence"]] = loaded


class Paged:
    def codec(self, step):
        return self.codecs[step.get("codec", "main")]

    def codec_create(self, step):
        codec = tqkv.PagedCodec(self.config(step))
        self.codecs[step.get("codec", "main")] = codec
        self.opened.append(codec)

    def codec_check(self, step):
        assert self.codec(step).check() == step["expect"]

    def codec_centres(self, step):
        key, value = (self.tensor(step[name])[0] if name in step else None
                      for name in ("key_centre", "value_centre"))
        self.codec(step).set_centres(step["layer"], key, value)

    def pages(self, step):
        form = {"block_size": step.get("block_size", 0), "order": ORDERS[step.get("order", 1)]}
        layout = self.codec(step).page_layout(step["layer"], step["num_blocks"], **form)
        for name, value in step["expect"].items():
            assert getattr(layout, name) == value, name
        memory = self.codec(step).empty(step["layer"], step["num_blocks"], **form)
        self.blocks[step["name"]] = self.codec(step).pages(step["layer"], memory, **form)

    def paged_step(self, step):
        if step["step"] not in self.steps:
            self.steps[step["step"]] = self.codec(step).step()
        return self.steps[step["step"]]

    def paged_plan(self, step):
        arrays = {name: np.array(step[name], dtype) for name, dtype in (
            ("slot_mapping", np.int64), ("block_table", np.int32), ("seq_lens", np.int32),
            ("query_start_loc", np.int32))}
        self.paged_step(step).plan(**arrays, max_query_len=step["max_query_len"],
                                   max_seq_len=step["max_seq_len"])

    def paged_append(self, step):
        self.paged_step(step).append(step["layer"], self.blocks[step["pages"]], self.put(step["k"]),
                                     self.put(step["v"]))

    def paged_layer(self, step):
        layers, number = self.codec(step).config.layers, step["layer"]
        return layers[number if 0 <= number < len(layers) else 0]

    def paged_attend(self, step):
        params, c, q = dict(step.get("params", {})), self.paged_layer(step), self.put(step["q"])
        self.put_arrays(params)
        rows = self.tensor(step["q"])[0].shape[0]
        out = self.arrays.empty((rows, c.num_q_heads, c.value_dim), "float32")
        lse = self.arrays.empty((rows, c.num_q_heads), "float32")
        self.paged_step(step).attend(step["layer"], self.blocks[step["pages"]], q, out=out, lse=lse, **params)
        self.compare(step, "out", out)
        self.compare(step, "lse", lse)

    def paged_read(self, step):
        c, slots = self.paged_layer(step), np.array(step["slots"], np.int64)
        io_dtype = self.codec(step).config.io_dtype
        k, v = (self.arrays.empty((len(slots), c.num_kv_heads, dim), io_dtype)
                for dim in (c.head_dim, c.value_dim))
        k, v = self.codec(step).read(step["layer"], self.blocks[step["pages"]], slots, k=k, v=v)
        self.compare(step, "k", k)
        self.compare(step, "v", v)

    def paged_copy(self, step):
        self.codec(step).copy(step["layer"], self.blocks[step["source"]], self.blocks[step["target"]],
                              np.array(step["pairs"], np.int64))
