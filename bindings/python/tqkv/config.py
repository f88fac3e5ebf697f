# SPDX-License-Identifier: Apache-2.0
"""Config: tq_cache_config with Python's types, and the questions that can be asked before a cache is made."""
import ctypes
import dataclasses
import json
import math
import operator
from typing import Any, List, Optional, Sequence, Tuple, Union

from . import _abi, _ffi
from ._ffi import check
from .buffers import as_bytes, check_device
from .errors import InvalidArgument

_ROTATIONS = {"hadamard": 1, "dense": 2}
_SCALES = {"ls": 1, "unbiased": 2, "norm": 3, "paper": 4}
_FAMILIES = {"scalar": 1, "prod": 2, "grouped": 3, "levels": 4, "trellis": 5}
_LAYER_KINDS = {"keys_values": 1, "latent": 2}
_SKETCHES = {"orthogonal": 1, "gaussian": 2}
_SKETCH_RULES = {"unbiased": 1, "least_error": 2}
_NAMED = {
    "code_family": _FAMILIES, "key_family": _FAMILIES, "value_family": _FAMILIES,
    "sketch": _SKETCHES, "sketch_rule": _SKETCH_RULES, "layer_kind": _LAYER_KINDS,
    "io_dtype": _ffi.DTYPES, "rotation": _ROTATIONS, "key_scale_rule": _SCALES, "value_scale_rule": _SCALES
}
_NUMBERS = (ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64)


@dataclasses.dataclass(frozen=True)
class Codebook:
    """A codebook of your own for coded layers of exactly `bits` bits: 2^(bits-1) rising magnitudes on the
    int8 grid; level = unit * magnitude for coordinates of unit variance. bits <= 3: magnitudes 1 .. 127. bits
    4 .. 6: a magnitude m in 0 .. 127 stands for m + 1/2."""

    bits: int
    unit: float
    magnitude: Tuple[int, ...]

    def _to_c(self, name):
        numbers = [integer(f"{name}.magnitude[{i}]", m, ctypes.c_uint8) for i, m in enumerate(self.magnitude)]
        if len(numbers) > 32:
            raise InvalidArgument(f"{name}.magnitude: has {len(numbers)} entries, must have at most 32")
        return _abi.Codebook(bits=integer(f"{name}.bits", self.bits, ctypes.c_int32),
                             unit=real(f"{name}.unit", self.unit), magnitude=(ctypes.c_uint8 * 32)(*numbers))


@dataclasses.dataclass(frozen=True)
class Levels:
    """Levels of your own: 2^bits levels, and 2^bits - 1 boundaries that do not fall. A coordinate of the
    rotated vector, divided by unit * |x|, gets as code the number of boundaries that it reaches; unit 1 is
    for levels of vectors of length 1, 1 / sqrt(rotated_dim) for coordinates of unit variance.

    sketch_factor   of the quantizer that uses them, where the file has one (0 = none)
    """

    levels: Tuple[float, ...]
    boundaries: Tuple[float, ...]
    unit: float = 1.0
    sketch_factor: float = 0.0

    @property
    def bits(self) -> int:
        return (len(self.levels) - 1).bit_length()

    def save(self, path: Any) -> None:
        """As JSON: {"levels": [..], "boundaries": [..], "unit": .., "sketch_factor": ..}."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(self), file)

    @classmethod
    def load(cls, path: Any) -> "Levels":
        """What save wrote. "centroids" is taken for "levels", and boundaries may have the two ends of the
        range as well, as other tools write them."""
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        levels = tuple(found["levels"] if "levels" in found else found["centroids"])
        boundaries = tuple(found["boundaries"])
        if len(boundaries) == len(levels) + 1:
            boundaries = boundaries[1:-1]
        return cls(levels, boundaries, found.get("unit", 1.0), found.get("sketch_factor", 0.0))

    def _to_c(self):
        if len(self.levels) != 1 << self.bits or len(self.boundaries) != len(self.levels) - 1:
            raise InvalidArgument(f"levels: {len(self.levels)} levels and {len(self.boundaries)} boundaries; "
                                  "there must be 2^bits and one less")
        arrays = [(ctypes.c_float * len(values))(*(real(f"levels.{name}[{i}]", v)
                                                   for i, v in enumerate(values)))
                  for name, values in (("levels", self.levels), ("boundaries", self.boundaries))]
        c = _abi.Levels(bits=self.bits, unit=real("levels.unit", self.unit))
        c.levels, c.boundaries = (ctypes.cast(array, type(c.levels)) for array in arrays)
        return c, arrays

    @classmethod
    def _of(cls, pointer):
        """What a tq_levels * points to; None for NULL."""
        if not pointer:
            return None
        c, count = pointer.contents, 1 << pointer.contents.bits
        return cls(tuple(c.levels[:count]), tuple(c.boundaries[:count - 1]), c.unit)


@dataclasses.dataclass(frozen=True)
class KeyBands:
    """Keys of a layer in bands of 32 coordinates, each with a width, a rotation and a scale of its own.
    The layer's key_bits is 0, its key_family "scalar", or "trellis" (bands of 2, 3, 4 bits then are).

    bits    of each band: head_dim / 32 (rounded up) widths of 1 .. 6, none above the one before
    order   [num_kv_heads][head_dim]: the coordinate at each place, band 0 first; None = as they are
    """

    bits: Tuple[int, ...]
    order: Optional[Tuple[Tuple[int, ...], ...]] = None

    def _to_c(self, name, num_kv_heads, head_dim):
        bits = [integer(f"{name}.bits[{i}]", b, ctypes.c_int32) for i, b in enumerate(self.bits)]
        c = _abi.KeyBands(num_bands=len(bits))
        c.bits = (ctypes.c_int32 * len(bits))(*bits)
        if self.order is not None:
            if len(self.order) != num_kv_heads or any(len(own) != head_dim for own in self.order):
                raise InvalidArgument(f"{name}.order: has {len(self.order)} rows of "
                                      f"{sorted({len(own) for own in self.order})}, must be num_kv_heads = "
                                      f"{num_kv_heads} rows of head_dim = {head_dim}")
            flat = [integer(f"{name}.order[{head}][{i}]", at, ctypes.c_int32)
                    for head, own in enumerate(self.order) for i, at in enumerate(own)]
            c.order = (ctypes.c_int32 * len(flat))(*flat)
        return c

    @classmethod
    def _of(cls, pointer, num_kv_heads, head_dim):
        """What a tq_key_bands * points to; None for NULL."""
        if not pointer:
            return None
        c = pointer.contents
        order = None
        if c.order:
            order = tuple(tuple(c.order[head * head_dim:(head + 1) * head_dim])
                          for head in range(num_kv_heads))
        return cls(tuple(c.bits[:c.num_bands]), order)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a cache whose layers differ: Config(layers=[Layer(sliding_window=1024), Layer()], ..).
    Fields as those of tq_layer_config in tqkv.h; what is 0 stands for the Config's own."""

    num_q_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    key_bits: int = 0
    value_bits: int = 0
    key_family: Union[str, int] = 0     # "scalar"; "prod" (keys), "grouped", "levels", "trellis"
    value_family: Union[str, int] = 0
    rotation: Union[str, int] = 0       # "hadamard", or "dense" (CPU only)
    sliding_window: int = 0             # tokens that a query sees, its own included; 0 = all
    shares_layer: Optional[int] = None  # an earlier layer, whose tokens this one attends to; None = its own
    first_kv_head: int = 0              # as Config's, for ranks whose layers hold different numbers of heads
    group_size: int = 0
    key_levels: Optional[Levels] = None
    value_levels: Optional[Levels] = None
    layer_kind: Union[str, int] = 0     # "keys_values" or "latent"
    key_bands: Optional[KeyBands] = None

    def _to_c(self, name, common):
        """common: the Config, whose fields stand in for those that are 0."""
        c, shared = _abi.LayerConfig(), self.shares_layer
        for field in dataclasses.fields(self):
            value, at = getattr(self, field.name), f"{name}.{field.name}"
            if field.name in _NAMED:
                setattr(c, field.name, choice(at, value, _NAMED[field.name]))
            elif field.name in ("key_levels", "value_levels"):
                if value is not None:
                    setattr(c, field.name, ctypes.pointer(value._to_c()[0]))
            elif field.name == "key_bands":
                if value is not None:
                    c.key_bands = ctypes.pointer(
                        value._to_c(at, self.num_kv_heads or common.num_kv_heads,
                                    self.head_dim or common.head_dim))
            elif field.name != "shares_layer":
                setattr(c, field.name, integer(at, value, ctypes.c_int32))
        if shared is not None:
            shared = integer(f"{name}.shares_layer", shared, ctypes.c_int32)
            if not 0 <= shared < 2**31 - 1:
                raise InvalidArgument(f"{name}.shares_layer = {shared}: must be None or an earlier layer")
            c.shares_layer = shared + 1
        return c

    @classmethod
    def _of(cls, c):
        fields = {field.name: getattr(c, field.name) for field in dataclasses.fields(cls)}
        fields.update((name, _name_of(_NAMED[name], fields[name])) for name in fields if name in _NAMED)
        fields.update((name, Levels._of(fields[name])) for name in ("key_levels", "value_levels"))
        fields["key_bands"] = KeyBands._of(c.key_bands, c.num_kv_heads, c.head_dim)
        return cls(**{**fields, "shares_layer": c.shares_layer - 1 if c.shares_layer else None})


def device_of(device):
    """"cpu", "cuda" or "cuda:N" as the header has it: (type, ordinal)."""
    kind, _, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or not (number == "" or number.isdigit()):
        raise InvalidArgument(f"device = {device!r}: must be \"cpu\", \"cuda\" or \"cuda:N\"")
    return (_ffi.CPU if kind == "cpu" else _ffi.CUDA), integer("device_id", int(number or 0), ctypes.c_int32)


@dataclasses.dataclass(frozen=True)
class Config:
    """What a cache is made from. Every field has the name, unit and default of tq_cache_config in tqkv.h; 0
    or None = default. Differences: `device` stands for device_type and device_id, and `io_dtype` and the
    names of rotations and scale rules may be given as strings.

    max_tokens is required, and, unless each of `layers` brings its own, num_layers, num_q_heads,
    num_kv_heads, head_dim, and key_bits and value_bits or their per-layer lists.
    """

    num_layers: int = 0                             # 0 = as many as `layers`
    num_q_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0                               # a multiple of 4 from 8 to 256, 512 or 576
    max_tokens: int = 0                             # that the pool holds over all sequences
    key_bits: int = 0                               # 1 2 3 4 5 6 8, or 16 = raw
    value_bits: int = 0
    io_dtype: Union[str, int] = "float32"           # of k, v, q and out: "float32", "float16", "bfloat16"
    device: str = "cpu"                             # "cpu", "cuda", "cuda:1"
    value_dim: int = 0                              # 0 = head_dim
    code_family: Union[str, int] = 0                # of both sides: "scalar", "grouped", "levels", "trellis"
    layer_key_bits: Optional[Sequence[int]] = None  # [num_layers], overriding key_bits where not 0
    layer_value_bits: Optional[Sequence[int]] = None
    rotation: Union[str, int] = 0                   # "hadamard", or "dense" (CPU only)
    key_scale_rule: Union[str, int] = 0             # "unbiased" (the default), "ls", "norm", "paper"
    value_scale_rule: Union[str, int] = 0
    page_size: int = 0                              # tokens
    rotation_seed: int = 0
    first_layer: int = 0                            # numbers in the whole model of layer 0 and kv head 0:
    first_kv_head: int = 0                          # a rank then stores the bytes that one device stores
    key_codebook: Optional[Codebook] = None
    value_codebook: Optional[Codebook] = None
    max_reserve_tokens: int = 0                     # what Cache.reserve may raise max_tokens to
    max_sequence_tokens: int = 0
    max_sequences: int = 0                          # 0 = 1
    max_batch_sequences: int = 0
    max_batch_tokens: int = 0
    max_raw_tokens: int = 0                         # room for exact copies, over all sequences
    window_tokens: int = 0                          # last tokens read exactly
    sink_tokens: int = 0                            # first tokens read exactly
    rollback_tokens: int = 0
    num_threads: int = 0                            # CPU: 0 = all that the process may use
    flags: int = 0                                  # TQ_FLAG_*
    allocator: Optional[_abi.Allocator] = None      # copied; a cache keeps its callbacks alive
    layers: Optional[Sequence[Layer]] = None        # [num_layers], where layers differ
    key_family: Union[str, int] = 0                 # 0 = code_family
    value_family: Union[str, int] = 0
    group_size: int = 0                             # of grouped codes: 16 32 64; 0 = 32
    sketch: Union[str, int] = 0                     # of "prod" keys: "orthogonal", "gaussian"
    sketch_rule: Union[str, int] = 0                # "unbiased", "least_error"
    sketch_factor: float = 0.0                      # 0 = by sketch_rule
    key_levels: Optional[Levels] = None             # of "levels", unless layers have their own
    value_levels: Optional[Levels] = None
    layer_kind: Union[str, int] = 0                 # "keys_values", or "latent": keys whose first value_dim
    #                                                 coordinates are the values too; append(v=None)
    pool: Any = None                                # memory for the pages: a writable contiguous array on the
    #                                                 device, 256-byte aligned; the cache holds it

    def check(self) -> List[str]:
        """Every reason why the library cannot run this configuration, each naming its field; [] if it can.
        Allocates nothing on a device."""
        library, room = _ffi.load_library(), 4096
        c, keep = self._to_c()  # keep lives until the library is done
        while True:
            text = ctypes.create_string_buffer(room)
            status = library.tq_cache_config_check(c, text, room)
            if len(text.value) < room - 1:
                return text.value.decode(errors="replace").split("\n") if status else []
            room *= 2  # the text was cut

    def bytes(self) -> _abi.CacheBytes:
        """What a cache of this configuration allocates, exactly: page_bytes, raw_bytes, table_bytes,
        workspace_bytes, device_bytes, host_bytes, num_pages, token_bytes (stored bytes of one token over all
        layers and heads), fp16_token_bytes. Raises as Cache does."""
        library, result = _ffi.load_library(), _abi.CacheBytes()
        c, keep = self._to_c()  # keep lives until the library is done
        check(library, library.tq_cache_config_bytes(c, result))
        return result

    def layer_bytes(self, layer: int) -> _abi.LayerBytes:
        """Of one layer: group (layers whose tokens live equally long), num_pages of the group, page_bytes,
        raw_bytes, token_bytes, fp16_token_bytes; zeros but for the first two where it shares another's
        tokens. Raises as Cache does."""
        library, result = _ffi.load_library(), _abi.LayerBytes()
        layer, (c, keep) = integer("layer", layer, ctypes.c_int32), self._to_c()  # keep: as above
        check(library, library.tq_cache_config_layer_bytes(c, layer, result))
        return result

    def _device(self):
        return device_of(self.device)

    def _to_c(self):
        """(tq_cache_config, what must stay alive as long as the cache). Every field is looked at once."""
        device_type, device_id = self._device()
        c, keep = _abi.CacheConfig(device_type=device_type, device_id=device_id), []
        for name, ctype in _abi.CacheConfig._fields_:
            if ctype in _NUMBERS and name in self.__dataclass_fields__:
                value, names = getattr(self, name), _NAMED.get(name)
                setattr(c, name, choice(name, value, names) if names else integer(name, value, ctype))
        if self.layers is not None:
            layers = [layer._to_c(f"layers[{i}]", self) for i, layer in enumerate(self.layers)]
            c.num_layers = c.num_layers or len(layers)
            if len(layers) != c.num_layers:
                raise InvalidArgument(f"layers: has {len(layers)} entries, num_layers = {c.num_layers}")
            c.layers = (_abi.LayerConfig * len(layers))(*layers)
        for name in ("layer_key_bits", "layer_value_bits"):
            bits = getattr(self, name)
            if bits is not None:
                bits = [integer(f"{name}[{i}]", b, ctypes.c_int32) for i, b in enumerate(bits)]
                if len(bits) != c.num_layers:
                    raise InvalidArgument(f"{name}: has {len(bits)} entries, num_layers = {c.num_layers}")
                setattr(c, name, (ctypes.c_int32 * len(bits))(*bits))
        for name in ("key_codebook", "value_codebook"):
            book = getattr(self, name)
            if book is not None:
                setattr(c, name, ctypes.pointer(book._to_c(name)))
        for name in ("key_levels", "value_levels"):
            levels = getattr(self, name)
            if levels is not None:
                setattr(c, name, ctypes.pointer(levels._to_c()[0]))
        c.sketch_factor = real("sketch_factor", self.sketch_factor)
        if self.allocator is not None:
            # A copy, and the callbacks that it has now: fields of the caller's struct may be set anew.
            allocator = _abi.Allocator.from_buffer_copy(self.allocator)
            keep += [self.allocator, dict(self.allocator._objects or {})]
            c.allocator = ctypes.pointer(allocator)
        if self.pool is not None:
            pool = as_bytes(self.pool, "pool")
            check_device(pool, (device_type, device_id), "pool")
            if not pool.writable:
                raise InvalidArgument("pool: cannot be written to")
            c.pool, c.pool_bytes = pool.pointer, pool.num_bytes
            keep.append(pool)
        return c, keep

    def _resolved(self, c):
        """This configuration with the defaults that the library filled in."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name, ctype in _abi.CacheConfig._fields_:
            if ctype in _NUMBERS and name in fields:
                fields[name] = getattr(c, name)
        for name, choices in _NAMED.items():
            fields[name] = _name_of(choices, fields[name])
        for name in ("layer_key_bits", "layer_value_bits"):
            bits = getattr(c, name)
            fields[name] = tuple(bits[:c.num_layers]) if bits else None
        fields["sketch_factor"] = c.sketch_factor
        fields["layers"] = tuple(Layer._of(layer) for layer in c.layers[:c.num_layers])
        fields["device"] = "cpu" if c.device_type == _ffi.CPU else f"cuda:{c.device_id}"
        return Config(**fields)


def _name_of(choices, number):
    return next((text for text, n in choices.items() if n == number), number)


def config_of(config, fields):
    """The Config that was given, or the one of these fields."""
    if config is None:
        return Config(**fields)
    if fields:
        raise TypeError("give a Config or its fields, not both")
    return config


def integer(name, value, ctype):
    """`value`, looked at once, as that C type holds it; ctypes itself would cut it silently."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{name} = {value!r}: must be an integer") from None
    if ctype(number).value != number:
        raise InvalidArgument(f"{name} = {number}: does not fit {ctypes.sizeof(ctype) * 8} bits")
    return number


def real(name, value):
    """`value` as a float that float32 holds."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name} = {value!r}: must be a number") from None
    if math.isfinite(number) and math.isinf(ctypes.c_float(number).value):
        raise InvalidArgument(f"{name} = {number}: does not fit float32")
    return number


def choice(name, value, choices):
    if isinstance(value, str):
        if value not in choices:
            raise InvalidArgument(f"{name} = {value!r}: must be one of {', '.join(choices)}")
        return choices[value]
    return integer(name, value, ctypes.c_int32)
