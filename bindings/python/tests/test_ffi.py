# SPDX-License-Identifier: Apache-2.0
"""The generated tables of _abi against the header, name by name and by a parser that the generator does not
use, and against the library and the golden layout table."""
import ctypes
from ctypes import (POINTER, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8,
                    c_uint32, c_uint64, c_void_p)

import header
import pytest
from tqkv import _abi, _ffi

SCALARS = {
    "int32_t": c_int32, "int64_t": c_int64, "uint32_t": c_uint32, "uint64_t": c_uint64, "uint8_t": c_uint8,
    "size_t": c_size_t, "float": c_float, "double": c_double, "char": c_char
}
HANDLES = {
    "tq_cache": _abi.CacheHandle, "tq_batch": _abi.BatchHandle, "tq_codec": _abi.CodecHandle,
    "tq_quantizer": _abi.QuantizerHandle, "tq_calibration": _abi.CalibrationHandle
}
STRUCTS = {name: struct for name, (struct, _) in _abi.STRUCTS.items()}


@pytest.fixture(scope="module")
def declared(root):
    return header.parse(root / "include" / "tqkv.h")


def argument_type(text, typedefs):
    """What ctypes type a C argument type must have."""
    kind = " ".join(text.replace("const", "").split())
    base, stars = kind.rstrip("* "), kind.count("*")
    base = typedefs.get(base, base)
    if base == "void" and stars == 2:
        return POINTER(c_void_p)
    if base == "float":
        return POINTER(c_void_p) if stars == 2 else c_void_p  # tensors: addresses as integers
    if base == "void":
        return c_void_p
    if base == "char":
        return c_char_p
    if base in HANDLES:
        return POINTER(HANDLES[base]) if stars == 2 else HANDLES[base]
    if base in STRUCTS:
        return POINTER(STRUCTS[base])
    return POINTER(SCALARS[base]) if stars else SCALARS[base]


def test_the_parser_sees_the_whole_header(declared, root):
    text = (root / "include" / "tqkv.h").read_text()
    assert len(declared.functions) == text.count("\nTQ_API ") >= 33
    assert len(declared.structs) == text.count("typedef struct") - 5  # five opaque ones
    assert len(declared.constants) == sum(1 for line in text.split("\n")
                                          if line.startswith("#define TQ_") and line.split()[1] != "TQ_API")


def test_constants(declared):
    assert _abi.CONSTANTS == declared.constants


def test_functions(declared):
    assert sorted(_abi.FUNCTIONS) == sorted(declared.functions)
    for name, (result, arguments) in declared.functions.items():
        have_result, have_arguments = _abi.FUNCTIONS[name]
        assert have_result is argument_type(result, declared.typedefs), name
        assert have_arguments == [argument_type(a, declared.typedefs) for a in arguments], name


def test_structs(declared):
    assert sorted(STRUCTS) == sorted(declared.structs)
    for name, fields in declared.structs.items():
        have = STRUCTS[name]._fields_
        assert [f[0] for f in have] == [f[1] for f in fields], name
        for (field, ctype), (kind, _, length) in zip(have, fields):
            where = f"{name}.{field}"
            if kind == "callback":
                assert ctype is getattr(_abi, field.upper() + "_FUNCTION"), where
            elif length:
                base = SCALARS[kind]
                assert ctype is base * length, where
            elif "*" in kind:
                base = kind.replace("const", "").strip(" *")
                assert ctype is (c_void_p
                                 if base == "void" else POINTER(STRUCTS.get(base) or SCALARS[base])), where
            else:
                assert ctype is SCALARS[declared.typedefs.get(kind, kind)], where


def test_sizes_are_the_librarys():
    library = _ffi.load_library()
    for name, (struct, number) in _abi.STRUCTS.items():
        assert library.tq_struct_size(_abi.CONSTANTS[number]) == ctypes.sizeof(struct), name
    assert library.tq_struct_size(99) == 0


def test_layout_table(root, declared):
    """tests/capi/layout.txt, which the C compiler wrote: the binding has just these structs, fields,
    constants and number types."""
    wanted = set((root / "tests" / "capi" / "layout.txt").read_text().strip().split("\n"))
    have = {f"constant {name} {value}" for name, value in _abi.CONSTANTS.items()}
    for name, struct in STRUCTS.items():
        have.add(f"struct {name} size {ctypes.sizeof(struct)} align {ctypes.alignment(struct)}")
        for field, *_ in struct._fields_:
            place = getattr(struct, field)
            have.add(f"{name}.{field} offset {place.offset} size {place.size}")
    for name, kind in declared.typedefs.items():
        ctype = SCALARS[kind]
        have.add(f"type {name} size {ctypes.sizeof(ctype)} signed {int(ctype(-1).value < 0)}")
    assert have == wanted, sorted(have ^ wanted)


def test_handles_do_not_mix():
    library = _ffi.load_library()
    with pytest.raises(ctypes.ArgumentError):
        library.tq_batch_destroy(_abi.CacheHandle())
    assert library.tq_batch_destroy(_abi.BatchHandle()) == 0  # NULL is accepted


def test_version(declared):
    import tqkv
    c = declared.constants
    assert tqkv.__version__ == tqkv.library_version(
    ) == f"{c['TQ_VERSION_MAJOR']}.{c['TQ_VERSION_MINOR']}.{c['TQ_VERSION_PATCH']}"
    assert tqkv.library_version() in tqkv.build_info()
