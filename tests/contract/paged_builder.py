# SPDX-License-Identifier: Apache-2.0
"""Writes contract cases of an engine's pages. The model is that of a cache: requests are its sequences, whose
tokens the case puts into blocks; what a block holds beside them is never asked for."""
import builder
import model
import numpy as np


class Paged(builder.Case):
    def __init__(self, tensors, name, about):
        super().__init__(tensors, name, about, cpu_only=True)

    def create(self, **config):
        self.step("codec_create", config=config)
        self.model = model.ModelCache({**config, "max_tokens": 4096})
        self.dtype = {model.F32: "f32", model.BF16: "bf16"}[config["io_dtype"]]
        self.page_size, self.tables, self.sizes = config["page_size"], {}, {}

    def pages(self, name, layer, num_blocks, block_size=None, order=None):
        """Memory of blocks. Expected: the bytes of all of them, which follow from those of a token."""
        c = self.model.layers[layer]
        tile = builder.ref.tile_num_bytes(c["head_dim"], c["bits"][0], c["value_dim"], c["bits"][1])
        size = block_size or self.page_size
        self.step("pages", name=name, layer=layer, num_blocks=num_blocks, block_size=block_size, order=order,
                  expect={"total_bytes": tile * c["num_kv_heads"] * size // 32 * num_blocks,
                          "block_head_bytes": tile * size // 32})

    def requests(self, block_size=None, **tables):
        """Requests, empty, and their blocks."""
        for name, blocks in tables.items():
            self.model.create(name)
            self.tables[name], self.sizes[name] = blocks, block_size or self.page_size

    def fork(self, source, name, blocks, length=None):
        """A request that has a copy of another one's tokens in blocks of its own."""
        self.model.fork(source, name)
        if length is not None:
            self.model.truncate(name, length)
        self.tables[name], self.sizes[name] = blocks, self.sizes[source]

    def slot(self, name, token):
        size = self.sizes[name]
        return self.tables[name][token // size] * size + token % size

    def plan(self, news, queries=None, padding=0, idle=0):
        """New tokens of requests, which ask queries (default: all new ones; else the last ones, so that rows
        of tokens that ask nothing come first, as slots -1 between them). padding: rows behind all; idle:
        requests of length 0."""
        names = list(news)
        asked = {name: (queries or news)[name] for name in names}
        before = {name: self.model.sequences[name].length for name in names}
        self.model.plan_step(names, [news[name] for name in names], [asked[name] for name in names])
        self.rows, slots, starts = [], [], [0]
        for name in names:
            # One row a new token that asks; tokens that do not ask stand in rows of no request, behind.
            for i in range(max(asked[name], 0)):
                token = before[name] + news[name] - asked[name] + i
                slots.append(self.slot(name, token) if token >= before[name] else -1)
                self.rows.append((name, token - before[name] if token >= before[name] else None))
            starts.append(len(slots))
        self.asking = len(slots)
        for name in names:
            for i in range(news[name] - asked[name]):
                slots.append(self.slot(name, before[name] + i))
                self.rows.append((name, i))
        slots += [-1] * padding
        self.rows += [(None, None)] * padding
        wide = max(len(self.tables[name]) for name in names)
        table = [self.tables[name] + [0] * (wide - len(self.tables[name])) for name in names]
        lens = [self.model.sequences[name].length for name in names]
        self.step("paged_plan", step="main", slot_mapping=slots, block_table=table + [[-1] * wide] * idle,
                  seq_lens=lens + [0] * idle, query_start_loc=starts + [starts[-1]] * idle,
                  max_query_len=max(asked.values()), max_seq_len=max(lens))

    def append(self, layer):
        c, news = self.model.layers[layer], self.model.plan[1]
        k, v = self.kv(sum(news), layer)
        self.model.append(layer, k, v)
        first = dict(zip(self.model.plan[0], np.cumsum([0] + list(news))))
        rows = [None if token is None else first[name] + token for name, token in self.rows]
        n = self._unique("")
        tensors = []
        for side, array, dim in (("k", k, c["head_dim"]), ("v", v, c["value_dim"])):
            all_rows = np.stack([builder.as_dtype(self.random(c["num_kv_heads"], dim), self.dtype)
                                 if row is None else array[row] for row in rows])
            tensors.append(self.put(side + n, all_rows))
        self.step("paged_append", step="main", pages=self._pages(layer), layer=layer, k=tensors[0],
                  v=tensors[1])

    def attend(self, layer, pages=None, **params):
        q = self.queries(layer)
        out, lse = self.model.attend(layer, q, params)
        c, n, idle = self.model.layers[layer], self._unique(""), len(self.rows) - self.asking
        params = self.put_arrays(params, n)
        if self.dtype != "f32":
            params["out_dtype"] = model.F32
        more = builder.as_dtype(self.random(idle, *q.shape[1:]), self.dtype) if idle else q[:0]
        out = np.concatenate([out, np.zeros((idle, *out.shape[1:]))])
        lse = np.concatenate([lse, np.full((idle, lse.shape[1]), -np.inf)])
        self.step("paged_attend", step="main", pages=pages or self._pages(layer), layer=layer,
                  q=self.put("q" + n, np.concatenate([q, more])), params=params or None,
                  out=self.put("out" + n, out.astype(np.float32)), out_l2=builder.ATTEND_L2,
                  lse=self.put("lse" + n, lse.astype(np.float32)), lse_abs=builder.LSE_ABS)

    def _pages(self, layer):
        names = [step["name"] for step in self.case["steps"]
                 if step["op"] == "pages" and "status" not in step and step["layer"] == layer]
        return names[0]

    def read(self, pages, layer, name, first, count):
        k, v = (builder.as_dtype(x, self.dtype) for x in self.model.read(layer, name, first, count))
        n = self._unique("")
        l2 = {"f32": builder.DECODE_L2, "bf16": builder.BF16_L2}[self.dtype]
        exact = [bits == model.RAW for bits in self.model.layers[layer]["bits"]]
        self.step("paged_read", pages=pages, layer=layer,
                  slots=[self.slot(name, token) for token in range(first, first + count)],
                  k=self.put("rk" + n, k), k_l2=None if exact[0] else l2, v=self.put("rv" + n, v),
                  v_l2=None if exact[1] else l2)

    def copy(self, source, target, pairs):
        self.step("paged_copy", source=source, target=target, layer=0, pairs=pairs)

    def centres(self, layer=0, key=None, value=None):
        super().centres(layer, key, value)
        self.case["steps"][-1]["op"] = "codec_centres"

    def flags(self, expect):
        self.step("codec_check", expect=expect)
