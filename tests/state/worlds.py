# SPDX-License-Identifier: Apache-2.0
"""Random small caches with a sequence that has lived: appended in steps, truncated, with tokens taken out."""
import numpy as np
import tqkv

DIMS = (32, 32, 32, 64, 64, 80, 96, 112)
BITS = (1, 2, 3, 4, 5, 6, 8, 16)
NUMPY_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def random_config(random):
    """Fields of a Config. A third of the caches have layers that differ, slide or share, one in eight is
    latent, and in one in eight of the others a layer is. One in twelve has keys in bands."""
    def one_of(values):
        return values[int(random.integers(len(values)))]

    fields = {
        "num_layers": int(random.integers(1, 4)), "num_kv_heads": int(random.integers(1, 4)),
        "head_dim": one_of(DIMS), "value_dim": one_of(DIMS),
        "io_dtype": one_of(("float32", "float16", "bfloat16")),
        "key_bits": one_of(BITS), "value_bits": one_of(BITS),
        "page_size": one_of((32, 64, 96)), "rotation_seed": int(random.integers(2**63)),
        "first_layer": int(random.integers(9)), "first_kv_head": int(random.integers(9)),
        "max_tokens": 512, "max_sequences": 3, "num_threads": 1,
        "window_tokens": one_of((0, 0, 5, 33)), "sink_tokens": one_of((0, 0, 3, 32)),
        "rollback_tokens": one_of((0, 4)),
    }
    fields["num_q_heads"] = fields["num_kv_heads"]
    if random.random() < 0.12:
        fields["layer_kind"] = "latent"
        fields["head_dim"] += fields["value_dim"]
        choose_families(fields, random, ("prod", "grouped"), ("grouped", ))
        return fields
    if random.random() < 0.05 and fields["head_dim"] == fields["value_dim"] == 32:
        fields["rotation"] = "dense"
    if random.random() < 0.15 and fields["key_bits"] in (2, 3):
        magnitudes = (20, 60, 90, 127)[:2**(fields["key_bits"] - 1)]
        fields["key_codebook"] = tqkv.Codebook(fields["key_bits"], 0.01, magnitudes)
    if random.random() < 0.33:
        fields["num_layers"] = 3
        slides = tqkv.Layer(sliding_window=int(random.integers(1, 80)), key_bits=one_of(BITS),
                            head_dim=one_of(DIMS))
        last = tqkv.Layer(shares_layer=one_of((0, 1)))
        if random.random() < 0.35:
            latent = one_of(DIMS)
            last = tqkv.Layer(layer_kind="latent", value_dim=latent, head_dim=latent + one_of(DIMS),
                              value_bits=one_of(BITS))
        fields["layers"] = [tqkv.Layer(), slides, last]
    elif "key_codebook" not in fields:
        choose_families(fields, random, ("prod", "grouped", "trellis", "levels"),
                        ("grouped", "trellis", "levels"))
        if random.random() < 0.15 and fields.get("rotation") != "dense":
            choose_bands(fields, random)
    return fields


def choose_bands(fields, random):
    """Of all layers' keys; half of them in an order of their own."""
    heads, dim, order = fields["num_kv_heads"], fields["head_dim"], None
    if random.random() < 0.5:
        order = tuple(tuple(random.permutation(dim).tolist()) for _ in range(heads))
    bits = tuple(sorted(random.integers(1, 7, -(-dim // 32)).tolist(), reverse=True))
    fields.update(key_bits=0, key_family="trellis" if random.random() < 0.5 else "scalar", key_levels=None,
                  layers=[tqkv.Layer(key_bands=tqkv.KeyBands(bits, order))] * fields["num_layers"])
    if fields["value_family"] != "grouped":
        fields["group_size"] = 0


def random_levels(random):
    """Levels of a caller, for coordinates of unit variance."""
    levels = np.sort(random.standard_normal(2**int(random.integers(1, 5)))).astype(np.float32)
    between = (levels[1:] + levels[:-1]) / 2
    return tqkv.Levels(tuple(levels.tolist()), tuple(between.tolist()), unit=1.0)


def choose_families(fields, random, key, value):
    """Code families of both sides: two thirds of them scalar codes."""
    def one_of(values):
        return values[int(random.integers(len(values)))]

    for side, others in (("key", key), ("value", value)):
        family = one_of(("scalar", ) * 2 * len(others) + others)
        if family in ("prod", "trellis"):
            fields[f"{side}_bits"] = one_of((2, 3, 4))
        elif family == "grouped":
            fields[f"{side}_bits"] = one_of((2, 3, 4, 8))
            fields["group_size"] = one_of((32, 64))
        elif family == "levels":
            fields[f"{side}_levels"] = random_levels(random)
            fields[f"{side}_bits"] = fields[f"{side}_levels"].bits
        fields[f"{side}_family"] = family


def numbers(random, shape, io_dtype):
    x = random.standard_normal(shape).astype(np.float32) * np.float32(2.0 ** random.integers(-20, 20))
    if random.random() < 0.1:
        x[random.random(shape) < 0.3] = 0
    if io_dtype == "bfloat16":
        return (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    with np.errstate(over="ignore"):
        return x.astype(NUMPY_TYPES[io_dtype])


def is_latent(shape):
    return shape.layer_kind == "latent"


def turns(shape):
    """Whether the layer's keys may have a matrix."""
    return (shape.shares_layer is None and not is_latent(shape) and shape.key_bits != 16 and
            shape.key_family != "grouped")


def own_levels(shape, head):
    """Of each side what the file has the hash of alone: levels of the caller's; of bands the order."""
    if shape.key_bands is None:
        key = shape.key_levels and shape.key_levels.levels
    else:
        key = shape.key_bands.order and shape.key_bands.order[head]
    return key, shape.value_levels and shape.value_levels.levels


def given_dims(shape):
    """Of what append and set_centres take: the keys of a latent layer hold its values."""
    return (shape.head_dim, ) if is_latent(shape) else (shape.head_dim, shape.value_dim)


def as_array(x, io_dtype):
    return tqkv.as_buffer(x, "bfloat16") if io_dtype == "bfloat16" else x


class World:
    def __init__(self, number):
        self.random = random = np.random.default_rng(number)
        self.cache = tqkv.Cache(**random_config(random))
        self.config = self.cache.config
        self.centres = {}
        for layer, shape in enumerate(self.config.layers):
            if shape.shares_layer is None and random.random() < 0.2:
                centre = [random.standard_normal((shape.num_kv_heads, dim)).astype(np.float32)
                          for dim in given_dims(shape)]
                self.cache.set_centres(layer, *centre)
                self.centres[layer] = centre
        self.matrices = {}
        for layer, shape in enumerate(self.config.layers):
            if turns(shape) and random.random() < 0.2:
                made = random.standard_normal((shape.num_kv_heads, shape.head_dim, shape.head_dim))
                self.matrices[layer] = (made / 20 + np.eye(shape.head_dim)).astype(np.float32)
                self.cache.set_key_matrix(layer, self.matrices[layer])
        self.sequence, self.batch = self.cache.sequence(), self.cache.batch()
        for _ in range(int(random.integers(0, 5))):
            self.step()

    def step(self):
        random, length = self.random, len(self.sequence)
        if length and random.random() < 0.2:
            try:
                self.sequence.truncate(int(random.integers(max(0, length - 6), length + 1)))
            except tqkv.InvalidState:  # a sliding layer gave back what the next query sees
                pass
        elif length and random.random() < 0.2:
            first = int(random.integers(length))
            try:
                self.sequence.remove(first, int(random.integers(min(40, length - first) + 1)))
            except tqkv.InvalidState:
                pass
        count = int(random.choice([0, 1, 1, 7, 31, 32, 64, 70]))
        self.batch.plan([self.sequence], [count])
        for layer, shape in enumerate(self.config.layers):
            if shape.shares_layer is not None:
                continue
            self.batch.append(layer, *(as_array(numbers(random, (count, shape.num_kv_heads, dim),
                                                        self.config.io_dtype), self.config.io_dtype)
                                       for dim in given_dims(shape)))

    def close(self):
        self.cache.close()
