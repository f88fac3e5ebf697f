# SPDX-License-Identifier: Apache-2.0
"""as_buffer and as_stream: every way in, and every way to be refused."""
import array
import ctypes
import gc

import fakes
import numpy as np
import pytest
import tqkv
from tqkv import buffers

X = np.arange(2 * 3 * 32, dtype=np.float32).reshape(2, 3, 32)


def same(buffer, a=X, dtype="float32"):
    assert buffer.pointer == a.ctypes.data
    assert buffer.dtype == dtype
    assert buffer.shape == a.shape
    assert buffer.strides == tuple(s // a.itemsize for s in a.strides)
    return buffer


# ---- the ways in

def test_numpy():
    assert same(tqkv.as_buffer(X)).kind == "numpy"
    half = X.astype("float16")
    same(tqkv.as_buffer(half), half, "float16")
    turned = X.transpose(1, 0, 2)
    same(tqkv.as_buffer(turned), turned)
    assert tqkv.as_buffer(np.empty((0, 3, 32), "float32")).shape == (0, 3, 32)


def test_numpy_read_only():
    a = X.copy()
    a.flags.writeable = False
    assert not tqkv.as_buffer(a).writable and tqkv.as_buffer(X).writable


def test_bits_need_a_name():
    bits = fakes.bfloat16_bits(X)
    same(tqkv.as_buffer(bits, "bfloat16"), bits, "bfloat16")
    same(tqkv.as_buffer(bits.view("int16"), "float16"), bits, "float16")
    with pytest.raises(tqkv.InvalidArgument, match=r"^k: has uint16 elements.*dtype=\"bfloat16\""):
        tqkv.as_buffer(bits, name="k")
    with pytest.raises(tqkv.InvalidArgument, match="k: has uint16"):
        tqkv.as_buffer(bits, "float32", name="k")


def test_extension_type_bfloat16():
    class Bfloat16Array:
        dtype = type("D", (), {"name": "bfloat16"})()
        __array_interface__ = {**fakes.bfloat16_bits(X).__array_interface__, "typestr": "<V2"}
    assert tqkv.as_buffer(Bfloat16Array()).dtype == "bfloat16"


@pytest.mark.parametrize("versioned", (True, False))
@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
def test_dlpack(versioned, dtype):
    a = {"float32": X, "float16": X.astype("float16"), "bfloat16": fakes.bfloat16_bits(X)}[dtype]
    fake = fakes.Dlpack(a, dtype, versioned=versioned, byte_offset=64)
    buffer = same(tqkv.as_buffer(fake), a, dtype)
    assert buffer.device_type == 1 and fake.stream == "not told" and fake.deleted == 0
    del buffer
    gc.collect()
    assert fake.deleted == 1


def test_dlpack_without_strides_and_read_only():
    assert same(tqkv.as_buffer(fakes.Dlpack(X, "float32", keep_strides=False))).writable
    assert not tqkv.as_buffer(fakes.Dlpack(X, "float32", read_only=True)).writable


def test_dlpack_of_numpy():
    class Only:
        def __init__(self, a):
            self.__dlpack__, self.__dlpack_device__ = a.__dlpack__, a.__dlpack_device__
    same(tqkv.as_buffer(Only(X)))


def test_dlpack_exchange_api():
    kind = fakes.exchange_type()
    fake = kind(X, "float32", read_only=True)
    buffer = same(tqkv.as_buffer(fake))
    assert (buffer.kind, buffer.writable, kind.calls) == ("dlpack", False, ["export"])
    del buffer
    gc.collect()
    assert fake.deleted == 1


@pytest.mark.parametrize("stream, calls", ((5, ["export"]), (7, ["export", "capsule"])))
def test_dlpack_exchange_api_orders_streams(stream, calls):
    """A producer on another stream is asked by __dlpack__, which orders the two."""
    kind = fakes.exchange_type(stream=5)
    fake = kind(X, "float32", device=(2, 1))
    buffer = same(tqkv.as_buffer(fake, stream=stream))
    assert (buffer.device_type, buffer.device_id, kind.calls) == (2, 1, calls)
    assert fake.deleted == len(calls) - 1 and fake.stream == ("not told" if len(calls) == 1 else 7)


def test_dlpack_exchange_api_of_another_version():
    kind = fakes.exchange_type(major=2)
    assert same(tqkv.as_buffer(kind(X, "float32"))).kind == "dlpack" and kind.calls == ["capsule"]


def test_tvm_ffi():
    tvm_ffi = pytest.importorskip("tvm_ffi", reason="apache-tvm-ffi is not installed")
    tensor = tvm_ffi.from_dlpack(X)
    buffer = same(tqkv.as_buffer(tensor))
    assert buffer.kind == "dlpack"
    with tqkv.Cache(num_layers=1, num_q_heads=2, num_kv_heads=1, head_dim=32, max_tokens=64, key_bits=4,
                    value_bits=4) as cache:
        sequence, batch = cache.sequence(), cache.batch()
        outs = []
        for way in (lambda x: x, tvm_ffi.from_dlpack):
            batch.plan([sequence], [2])
            k, q = np.ascontiguousarray(X[:, :1]), np.ascontiguousarray(X[:, 1:])
            batch.append(0, way(k), way(k))
            outs.append(batch.attend(0, way(q), out=np.empty_like(q)))
            sequence.truncate(0)
        assert np.array_equal(*outs)


def test_dlpack_on_cuda_is_told_the_stream():
    fake = fakes.Dlpack(X, "float32", device=(2, 1))
    buffer = tqkv.as_buffer(fake, stream=77)
    assert (fake.stream, buffer.device_type, buffer.device_id) == (77, 2, 1)
    tqkv.as_buffer(fake)
    assert fake.stream == 1  # DLPack's number of the legacy default stream


def test_dlpack_refused():
    with pytest.raises(tqkv.InvalidArgument, match="device type 4"):
        tqkv.as_buffer(fakes.Dlpack(X, "float32", device=(4, 0)))
    with pytest.raises(tqkv.InvalidArgument, match="q: has int32 elements"):
        tqkv.as_buffer(fakes.Dlpack(X.view("int32"), "int32"), name="q")
    old = fakes.Dlpack(X, "float32", major=2)
    with pytest.raises(tqkv.InvalidArgument, match="DLPack version 2.0"):
        tqkv.as_buffer(old)
    assert old.deleted == 1


def test_cuda_array_interface():
    buffer = same(tqkv.as_buffer(fakes.CudaArray(X, device_id=3)))
    assert (buffer.device_type, buffer.device_id) == (2, 3)
    tqkv.as_buffer(fakes.CudaArray(X, stream=1), stream=0)  # both are the legacy default stream
    tqkv.as_buffer(fakes.CudaArray(X, stream=0x50), stream=0x50)
    with pytest.raises(tqkv.InvalidArgument,
                       match="k: its data is being made on stream 0x50, and this call is on 0x60"):
        tqkv.as_buffer(fakes.CudaArray(X, stream=0x50), stream=0x60, name="k")


def test_torch_duck():
    same(tqkv.as_buffer(fakes.Torch(X, "float32")))
    bits = fakes.bfloat16_bits(X)
    buffer = same(tqkv.as_buffer(fakes.Torch(bits, "bfloat16", ("cuda", 2))), bits, "bfloat16")
    assert (buffer.device_type, buffer.device_id) == (2, 2)
    with pytest.raises(tqkv.InvalidArgument, match="q: is on device mps"):
        tqkv.as_buffer(fakes.Torch(X, "float32", ("mps", 0)), name="q")
    with pytest.raises(tqkv.InvalidArgument, match="q: has float64 elements"):
        tqkv.as_buffer(fakes.Torch(X, "float64"), name="q")


def test_buffer_protocol():
    flat = array.array("f", X.reshape(-1))
    buffer = tqkv.as_buffer(flat)
    assert (buffer.pointer, buffer.shape, buffer.strides, buffer.writable) == (flat.buffer_info()[0], (192, ),
                                                                               (1, ), True)
    with pytest.raises(BufferError):
        flat.append(0.0)  # held, so it cannot move
    del buffer
    flat.append(0.0)
    c = (ctypes.c_float * 4 * 3)()
    buffer = tqkv.as_buffer(c)
    assert (buffer.pointer, buffer.shape, buffer.dtype) == (ctypes.addressof(c), (3, 4), "float32")
    assert tqkv.as_buffer(memoryview(X)[1:]).shape == (1, 3, 32)
    assert not tqkv.as_buffer(bytes(8), "float32").writable
    assert tqkv.as_buffer(bytearray(8), "bfloat16").shape == (4,)
    assert tqkv.as_buffer(array.array("H", [1, 2]), "bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("wrong, text", [(3.0, "k: a float is no array"),
                                         ([1.0, 2.0], "k: a list is no array"),
                                         (None, "k: a NoneType is no array"),
                                         (np.zeros(3), "k: has <f8 elements"),
                                         (np.zeros(3, ">f4"), "k: has >f4 elements"),
                                         (array.array("d", [1.0]), "k: has d elements"),
                                         (bytes(8), "k: has uint8 elements")])
def test_no_array(wrong, text):
    with pytest.raises(tqkv.InvalidArgument, match="^" + text):
        tqkv.as_buffer(wrong, name="k")


def test_other_refusals():
    with pytest.raises(tqkv.InvalidArgument, match="dtype = 'float8'"):
        tqkv.as_buffer(X, "float8")
    with pytest.raises(tqkv.InvalidArgument, match="a multiple of 4"):
        tqkv.as_buffer(bytes(7), "float32")
    with pytest.raises(tqkv.InvalidArgument, match="is a Buffer of float32, not of float16"):
        tqkv.as_buffer(tqkv.as_buffer(X), "float16")
    record = np.zeros(4, dtype=[("a", "u1"), ("x", "<f4")])["x"]
    with pytest.raises(tqkv.InvalidArgument, match="stride of 5 bytes"):
        tqkv.as_buffer(record)


# ---- what a call makes of it

CPU = (1, 0)


def rows(a, shape=(2, 3, 32), **more):
    return buffers.rows(tqkv.as_buffer(a),
                        "k",
                        shape,
                        "[new tokens][num_kv_heads][head_dim]",
                        dtype=1,
                        device=CPU,
                        **more)


def test_strides():
    assert rows(X) == (96, 32)
    assert rows(X.transpose(1, 0, 2), (3, 2, 32)) == (32, 96)
    assert rows(X[:, :1], (2, 1, 32)) == (96, 0)
    assert rows(X[:1], (1, 3, 32)) == (0, 32)
    assert rows(X.reshape(-1)) == (0, 0)
    assert rows(np.concatenate([X, X], axis=2)[:, :, :32]) == (192, 64)
    assert rows(np.empty((0, 3, 32), "float32"), (0, 3, 32)) == (0, 32)


@pytest.mark.parametrize(
    "a, text",
    [
        # to the library a stride of 0 would mean dense
        (np.broadcast_to(X[:1], (2, 3, 32)), "k: has strides of .0, 32. elements"),
        (X[::-1], "k: has strides of .-96, 32."),
        (np.repeat(X, 2,
                   axis=2)[:, :, ::2], "k: the last dimension must be contiguous, its stride is 2 elements"),
        (X[:1], r"k: has shape \[1, 3, 32\], expected \[2, 3, 32\] = \[new tokens\]"),
        (X.reshape(-1)[:-1], "k: has shape"),
        (X.reshape(-1)[::2], "k: has shape"),
        (X.astype("float16"), "k: has float16 elements, expected float32"),
        (fakes.CudaArray(X), "k: is on CUDA device 0, the cache is on the CPU")
    ])
def test_rows_refused(a, text):
    with pytest.raises(tqkv.InvalidArgument, match="^" + text):
        rows(a)


def test_written_arrays_must_be_writable():
    with pytest.raises(tqkv.InvalidArgument, match="k: cannot be written to"):
        rows(memoryview(X.tobytes()).cast("f"), writable=True)


def test_shared_memory_is_on_any_device():
    managed = tqkv.as_buffer(fakes.Dlpack(X, "float32", device=(13, 0)))
    buffers.check_device(managed, (1, 0), "k")
    buffers.check_device(managed, (2, 5), "k")
    with pytest.raises(tqkv.InvalidArgument, match="k: is on the CPU, the cache is on CUDA device 5"):
        buffers.check_device(tqkv.as_buffer(X), (2, 5), "k")


# ---- streams

def test_streams():
    assert tqkv.as_stream(None) == 0
    assert tqkv.as_stream(1234) == 1234
    assert tqkv.as_stream(fakes.Stream(cuda_stream=5)) == 5
    assert tqkv.as_stream(fakes.Stream(ptr=2 ** 63 + 6)) == 2 ** 63 + 6
    assert tqkv.as_stream(fakes.Stream(__cuda_stream__=lambda: (0, 7))) == 7
    with pytest.raises(tqkv.InvalidArgument, match="stream: a str"):
        tqkv.as_stream("default")


def test_memory():
    assert buffers.as_bytes(X, "pool").num_bytes == X.nbytes
    assert buffers.as_bytes(bytearray(5), "pool").num_bytes == 5
    with pytest.raises(tqkv.InvalidArgument, match="pool: must be contiguous"):
        buffers.as_bytes(X[:, ::2], "pool")
    with pytest.raises(tqkv.InvalidArgument, match="pool: a int"):
        buffers.as_bytes(3, "pool")
