# SPDX-License-Identifier: Apache-2.0
"""Any array as an address with a type, a shape, strides and a device: as_buffer.

No array library is imported. An object is taken by what it offers, in this order: what a torch tensor is, by
DLPack's C functions or by its attributes; NumPy's __array_interface__; DLPack, by C functions or capsules;
__cuda_array_interface__; the buffer protocol. Nothing is copied: what cannot be used in place is an error.
"""
import functools
import operator
import struct
import sys
from typing import Any, NamedTuple, Optional, Tuple

from . import _dlpack, _pybuffer
from ._ffi import CPU, CUDA, DTYPE_BYTES, DTYPE_NAMES, DTYPES
from .errors import InvalidArgument

# Typestrings of __array_interface__ and __cuda_array_interface__, and formats of the buffer protocol, both
# little-endian or native.
_TYPESTRINGS = {
    "<f4": "float32", "<f2": "float16", "<u2": "uint16", "<i2": "int16", "|u1": "uint8", "|i1": "uint8",
    "<i4": "int32", "<i8": "int64", "<u8": "uint64"
}
_FORMATS = {
    "f": "float32", "e": "float16", "H": "uint16", "h": "int16", "B": "uint8", "b": "uint8", "c": "uint8",
    "i": "int32", "q": "int64", "Q": "uint64"
}
if struct.calcsize("l") == 8:
    _FORMATS.update(l="int64", L="uint64")
# Element types that an argument takes, with their bytes.
FLOATS = {name: DTYPE_BYTES[number] for name, number in DTYPES.items()}
FLOAT32, RANGES, BITS = {"float32": 4}, {"int32": 4}, {"uint64": 8, "int64": 8}
SLOTS, BYTES = {"int64": 8}, {"uint8": 1}


class Buffer(NamedTuple):
    """An array seen as the library sees it. Made by as_buffer, and never changes; may be passed wherever an
    array may, which saves looking at the array again: then the array must not be resized as long as the
    Buffer lives.

    pointer            address of element [0, 0, ..]
    dtype              "float32", "float16" or "bfloat16"
    shape, strides     tuples; strides in elements
    device_type, device_id
                       TQ_DEVICE_CPU (1) or TQ_DEVICE_CUDA (2), and the CUDA ordinal; device_id None: the
                       object does not say. device_type None: memory that host and device share
    writable           False if the object forbids writing
    owner              the object; the memory lives as long as it does
    kind               by which of the ways it was taken
    held               what keeps the owner's memory in place: a buffer view, a DLPack tensor; or None
    """

    pointer: int
    dtype: str
    shape: Tuple[int, ...]
    strides: Tuple[int, ...]
    device_type: Optional[int]
    device_id: Optional[int]
    writable: bool
    owner: Any
    kind: str
    held: Any = None

    __eq__, __hash__ = object.__eq__, object.__hash__  # a Buffer is itself; owners have their own idea of ==

    def __repr__(self):
        device = {CPU: "cpu", CUDA: f"cuda:{self.device_id}"}.get(self.device_type, "shared")
        return f"Buffer({self.kind} {self.dtype} {list(self.shape)} on {device})"

    @property
    def size(self):
        """Number of elements."""
        return _product(self.shape)


def _product(extents):
    count = 1
    for extent in extents:
        count *= extent
    return count


def _numbers(name, what, values, lowest, end):
    """Integers that an array says of itself, as Python ones: NumPy's would wrap, ctypes would cut them."""
    try:
        numbers = tuple(map(operator.index, values))
    except TypeError:
        raise InvalidArgument(f"{name}: {what} {values!r} must be integers") from None
    if numbers and not (lowest <= min(numbers) and max(numbers) < end):
        raise InvalidArgument(f"{name}: {what} {numbers} must be {lowest} .. {end - 1}")
    return numbers


def _buffer(name, pointer, dtype, shape, strides, device, writable, owner, kind, held=None, own=False):
    """strides: None if dense. own: shape, strides and address are tuples and an int of a library's own."""
    if own:
        strides = dense_strides(shape) if strides is None else strides
        return Buffer(pointer, dtype, shape, strides, *device, writable, owner, kind)
    shape = _numbers(name, "shape", shape, 0, 2**63)
    strides = dense_strides(shape) if strides is None else _numbers(name, "strides", strides, -2**63, 2**63)
    if len(shape) != len(strides):
        raise InvalidArgument(f"{name}: has {len(shape)} dimensions and {len(strides)} strides")
    pointer, = _numbers(name, "address", (pointer or 0, ), 0, 2**64)
    return Buffer(pointer, dtype, shape, strides, *device, bool(writable), owner, kind, held)


def as_buffer(array, dtype=None, *, name="array", stream=0, takes=FLOATS):
    """`array` as a Buffer, without a copy.

    array   torch.Tensor; numpy.ndarray; any object with __dlpack__ or __cuda_array_interface__; any object
            with the buffer protocol (array.array, ctypes arrays, memoryview, bytes); or a Buffer
    dtype   "float32", "float16", "bfloat16": what the elements are, needed where the object cannot say it:
            16-bit integers that hold the bits of float16 or bfloat16, or plain bytes. None: as the object
            says
    name    for error texts
    stream  the stream on which the memory will be used: producers that order their work by DLPack are told
    takes   element types that are taken (FLOATS, RANGES, BITS, SLOTS, BYTES)
    Raises InvalidArgument, which names `name`.
    """
    if isinstance(array, Buffer):
        if dtype is not None and dtype != array.dtype:
            raise InvalidArgument(f"{name}: is a Buffer of {array.dtype}, not of {dtype}")
        _resolve_dtype(array.dtype, None, name, takes)
        return array
    if hasattr(array, "data_ptr") and hasattr(array, "stride"):
        seen = _dlpack.look(array, takes) if dtype is None else None
        if seen is not None:
            pointer, found, shape, strides, device = seen
            return Buffer(pointer, found, shape, strides, *device, True, array, "torch")
        return _from_torch(array, dtype, name, takes)
    interface = getattr(array, "__array_interface__", None)
    if interface is not None:
        return _from_array_interface(array, interface, dtype, name, takes, "numpy", (CPU, 0))
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _from_dlpack(array, dtype, name, takes, stream)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        _check_producer_stream(interface.get("stream"), stream, name)
        device = getattr(getattr(array, "device", None), "id", None)
        return _from_array_interface(array, interface, dtype, name, takes, "cuda", (CUDA, device))
    return _from_buffer_protocol(array, dtype, name, takes)


def as_stream(stream):
    """A stream as the library takes it: None (the legacy default stream, or none at all for a CPU cache), an
    int, a torch stream (.cuda_stream), a CuPy stream (.ptr), or an object with __cuda_stream__. Returns an
    int, 0 for None."""
    if stream is None:
        return 0
    value = stream
    if hasattr(stream, "__cuda_stream__"):
        value = stream.__cuda_stream__()[1]
    elif not isinstance(stream, int):
        values = (getattr(stream, attribute, None) for attribute in ("cuda_stream", "ptr"))
        value = next((v for v in values if isinstance(v, int)), None)
    if not isinstance(value, int):
        raise InvalidArgument(
            f"stream: a {type(stream).__name__} is no stream; give None, an int, or a torch or CuPy stream")
    if not 0 <= value < 2**64:
        raise InvalidArgument(f"stream = {value}: is no address of a stream")
    return int(value)


# ---- what elements are

def _resolve_dtype(found, wanted, name, takes):
    if wanted is not None and wanted not in takes:
        raise InvalidArgument(f"dtype = {wanted!r}: must be one of {', '.join(takes)}")
    if found in takes:
        if wanted not in (None, found):
            raise InvalidArgument(f"{name}: has {found} elements, not {wanted}")
        return found
    if found in ("uint16", "int16", "uint8") and "bfloat16" in takes:
        if wanted is None:
            raise InvalidArgument(
                f"{name}: has {found} elements; if they are the bits of another type, say so: "
                f"tqkv.as_buffer({name}, dtype=\"bfloat16\")")
        if found == "uint8" or takes[wanted] == 2:
            return wanted
    raise InvalidArgument(f"{name}: has {found} elements; they must be {', '.join(takes)}")


def _element_strides(strides_bytes, size, name):
    for stride in strides_bytes:
        if stride % size:
            raise InvalidArgument(
                f"{name}: a stride of {stride} bytes is not a multiple of its {size}-byte elements")
    return tuple(stride // size for stride in strides_bytes)


def dense_strides(shape):
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


# ---- the five ways in

def _is_own(array, module, name):
    """Whether an array is of the very class of its library, whose numbers need no check."""
    return type(array) is getattr(sys.modules.get(module), name, None)


@functools.lru_cache(maxsize=64)
def _text(dtype_or_layout):
    return str(dtype_or_layout)


def _from_torch(tensor, dtype, name, takes):
    device, layout = tensor.device, getattr(tensor, "layout", "strided")
    if device.type not in ("cpu", "cuda"):
        raise InvalidArgument(f"{name}: is on device {device}; only cpu and cuda can be used")
    if "strided" not in _text(layout):
        raise InvalidArgument(f"{name}: is a {layout} tensor; only dense ones can be used")
    resolved = _resolve_dtype(_text(tensor.dtype).replace("torch.", ""), dtype, name, takes)
    where = (CPU, 0) if device.type == "cpu" else (
        CUDA, device.index if device.index is not None else tensor.get_device())
    return _buffer(name, tensor.data_ptr(), resolved, tensor.shape, tensor.stride(), where, True, tensor,
                   "torch", own=_is_own(tensor, "torch", "Tensor"))


def _from_array_interface(array, interface, dtype, name, takes, kind, device):
    typestring, shape, (pointer, read_only) = _interface(interface, name)
    found = _TYPESTRINGS.get(typestring, typestring)
    if found not in DTYPES and getattr(getattr(array, "dtype", None), "name", "") == "bfloat16":
        found = "bfloat16"  # the array interface has no word for it, an extension type of NumPy does
    resolved = _resolve_dtype(found, dtype, name, takes)
    size = takes[resolved]
    strides = interface.get("strides")
    if found == "uint8" and resolved != found:
        if len(shape) != 1 or (strides and strides[0] != 1) or shape[0] % size:
            raise InvalidArgument(f"{name}: bytes must be one contiguous row of a multiple of {size}")
        shape, strides = (shape[0] // size,), None
    strides = None if strides is None else _element_strides(strides, size, name)
    return _buffer(name, pointer, resolved, shape, strides, device, not read_only, array, kind,
                   own=_is_own(array, "numpy", "ndarray"))


def _interface(interface, name):
    """(typestr, shape, data) of an array interface."""
    try:
        typestring, shape, (pointer, read_only) = interface["typestr"], interface["shape"], interface["data"]
        return typestring, tuple(shape), (pointer, read_only)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"{name}: its array interface has no typestr, shape and data (address, "
                              f"read-only): {error!r}") from None


def _from_dlpack(array, dtype, name, takes, stream):
    view = _dlpack.import_tensor(array, stream, name)
    resolved = _resolve_dtype(view.dtype, dtype, name, takes)
    if view.dtype == "uint8" and resolved != view.dtype:
        raise InvalidArgument(f"{name}: has uint8 elements; they must be {', '.join(takes)}")
    kind = "cupy" if type(array).__module__.split(".")[0] == "cupy" else "dlpack"
    return _buffer(name, view.pointer, resolved, view.shape, view.strides, view.device, view.writable, array,
                   kind, view)


def _check_producer_stream(producer, stream, name):
    """The producer's stream of __cuda_array_interface__ version 3: work on it must come before ours. Ordering
    two streams takes an event, which the library has no call for, so another stream is refused instead of
    raced with."""
    if producer is not None and producer != (stream or 1):
        raise InvalidArgument(f"{name}: its data is being made on stream {producer:#x}, and this call is on "
                              f"{(stream or 1):#x}; pass that stream, or order the two")


def _from_buffer_protocol(array, dtype, name, takes):
    try:
        view = _pybuffer.View(array)
    except (TypeError, BufferError) as error:
        raise InvalidArgument(
            f"{name}: a {type(array).__name__} is no array that can be used in place: {error}") from None
    found = _FORMATS.get(view.format.lstrip("@=<" if sys.byteorder == "little" else "@=>"), view.format)
    resolved = _resolve_dtype(found, dtype, name, takes)
    size = takes[resolved]
    if found == "uint8" and resolved != found:
        if len(view.shape) != 1 or view.strides[0] != 1 or view.shape[0] % size:
            raise InvalidArgument(f"{name}: bytes must be one contiguous row of a multiple of {size}")
        shape, strides = (view.shape[0] // size, ), None
    else:
        shape, strides = view.shape, _element_strides(view.strides, size, name)
    return _buffer(name, view.pointer, resolved, shape, strides, (CPU, 0), view.writable, array, "buffer",
                   view)


# ---- what a call needs

def check_device(buffer, device, name):
    """device: (type, id) of the cache."""
    same = buffer.device_type is None or (buffer.device_type == device[0] and
                                          (device[0] == CPU or buffer.device_id in (None, device[1])))
    if not same:
        where = {CPU: "the CPU", CUDA: f"CUDA device {buffer.device_id}"}[buffer.device_type]
        cache = "the CPU" if device[0] == CPU else f"CUDA device {device[1]}"
        raise InvalidArgument(f"{name}: is on {where}, the cache is on {cache}")


def rows(buffer, name, shape, meaning, *, dtype, device, writable=False):
    """(token stride, head stride) of a tensor [tokens][heads][dim] for the library: elements, 0 = dense. A
    flat contiguous buffer of as many elements is taken as dense. Raises InvalidArgument."""
    check_device(buffer, device, name)
    if DTYPES[buffer.dtype] != dtype:
        raise InvalidArgument(f"{name}: has {buffer.dtype} elements, expected {DTYPE_NAMES[dtype]}")
    if writable and not buffer.writable:
        raise InvalidArgument(f"{name}: cannot be written to")
    tokens, heads, dim = shape
    if buffer.shape == shape:
        token, head, last = buffer.strides
        if last != 1 and dim > 1 and tokens * heads > 0:
            raise InvalidArgument(
                f"{name}: the last dimension must be contiguous, its stride is {last} elements")
        # 0 means dense to the library, so a stride that is used may not be 0 (as broadcasting makes it), and
        # one that is not used is passed as 0.
        token, head = (token if tokens > 1 else 0), (head if heads > 1 else 0)
        if tokens * heads > 0 and ((tokens > 1 and token <= 0) or (heads > 1 and head <= 0)):
            raise InvalidArgument(f"{name}: has strides of {buffer.strides[:2]} elements for tokens and "
                                  "heads; they must be above 0")
        return token, head
    if len(buffer.shape) == 1 and buffer.size == tokens * heads * dim and (buffer.size <= 1
                                                                           or buffer.strides[0] == 1):
        return 0, 0
    raise InvalidArgument(f"{name}: has shape {list(buffer.shape)}, expected {list(shape)} = {meaning}")


def dense(buffer, name, shape, meaning, *, dtype, device, writable=False):
    """Checks a contiguous tensor of any number of dimensions (flat is taken too) and returns its address.
    dtype: None if as_buffer has checked it."""
    check_device(buffer, device, name)
    if dtype is not None and DTYPES.get(buffer.dtype) != dtype:
        raise InvalidArgument(f"{name}: has {buffer.dtype} elements, expected {DTYPE_NAMES[dtype]}")
    if writable and not buffer.writable:
        raise InvalidArgument(f"{name}: cannot be written to")
    count = _product(shape)
    if buffer.size != count or (buffer.shape != shape and len(buffer.shape) != 1):
        raise InvalidArgument(f"{name}: has shape {list(buffer.shape)}, expected {list(shape)} = {meaning}")
    expected = dense_strides(buffer.shape)
    if any(extent > 1 and have != want
           for extent, have, want in zip(buffer.shape, buffer.strides, expected)) and count > 0:
        raise InvalidArgument(f"{name}: must be contiguous, its strides are {list(buffer.strides)} elements")
    return buffer.pointer


def empty_like(buffer, shape, dtype, name):
    """A new, uninitialised array of the kind of `buffer` (its owner's library and device) as (array,
    Buffer). dtype: a number of the header, or "uint8", "int64"."""
    text = DTYPE_NAMES.get(dtype, dtype)
    if buffer.kind == "torch" and "torch" in sys.modules:
        torch = sys.modules["torch"]
        array = torch.empty(shape, dtype=getattr(torch, text), device=buffer.owner.device)
    elif buffer.kind == "numpy" and "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        # bfloat16 as the input had it: an extension type, or its bits
        own = getattr(buffer.owner, "dtype", None)
        array = numpy.empty(
            shape,
            dtype=text if text != "bfloat16" else own if getattr(own, "name", "") == "bfloat16" else "uint16")
    elif buffer.kind == "cupy" and text != "bfloat16":
        array = sys.modules["cupy"].empty(shape, dtype=text)
    elif buffer.kind == "buffer":
        array = _empty_view(shape, text)
    else:
        raise InvalidArgument(f"{name}: cannot be made like the input, a {type(buffer.owner).__name__}; pass "
                              f"{name}= to write into")
    if text in FLOATS:
        return array, as_buffer(array, text, name=name)
    return array, as_buffer(array, name=name, takes={**SLOTS, **BYTES})


def _empty_view(shape, text):
    """A memoryview of that shape; 16-bit floats as unsigned integers, which is all that memoryview can show
    of them."""
    letter = {"float32": "f", "uint8": "B", "int64": "q"}.get(text, "H")
    count = _product(shape)
    flat = memoryview(bytearray(count * {**FLOATS, **SLOTS, **BYTES}[text])).cast(letter)
    return flat.cast("B").cast(letter, shape) if count else flat


# ---- plain memory

class Memory(NamedTuple):
    """Bytes at an address, whatever they are: a workspace or a pool."""

    pointer: int
    num_bytes: int
    device_type: Optional[int]
    device_id: Optional[int]
    writable: bool
    held: Any  # keeps the memory in place


def as_bytes(array, name):
    """A contiguous array of any type as Memory: torch tensors, NumPy and __cuda_array_interface__ arrays, the
    buffer protocol."""
    on_host = getattr(array, "__array_interface__", None)
    interface = on_host or getattr(array, "__cuda_array_interface__", None)
    device, writable, held = (CPU, 0), True, array
    if hasattr(array, "data_ptr") and hasattr(array, "element_size"):
        contiguous, pointer = array.is_contiguous(), array.data_ptr()
        num_bytes = array.numel() * array.element_size()
        if array.device.type != "cpu":
            device = (CUDA, array.get_device())
    elif interface is not None:
        typestring, shape, (pointer, read_only) = _interface(interface, name)
        contiguous, writable = interface.get("strides") is None, not read_only
        num_bytes = _product((int(typestring[2:]), *_numbers(name, "shape", shape, 0, 2**63)))
        if not on_host:
            device = (CUDA, getattr(getattr(array, "device", None), "id", None))
    else:
        try:
            flat = memoryview(array)
            held = _pybuffer.View(flat)
        except (TypeError, BufferError) as error:
            raise InvalidArgument(
                f"{name}: a {type(array).__name__} is no memory that can be used: {error}") from None
        contiguous, pointer, num_bytes, writable = flat.c_contiguous, held.pointer, flat.nbytes, held.writable
    if not contiguous:
        raise InvalidArgument(f"{name}: must be contiguous")
    pointer, num_bytes = _numbers(name, "address and size", (pointer or 0, num_bytes), 0, 2**63)
    return Memory(pointer, num_bytes, *device, bool(writable), held)


def as_workspace(array, device):
    """A caller's workspace as Memory."""
    memory = as_bytes(array, "workspace")
    check_device(memory, device, "workspace")
    if not memory.writable:
        raise InvalidArgument("workspace: cannot be written to")
    return memory
