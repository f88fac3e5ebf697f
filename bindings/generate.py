#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what the bindings repeat of include/tqkv.h: constants, types, functions, with the header's comments.

    rust/tqkv-sys/src/bindings.rs   lists for the macros of table.rs
    go/tqkv.h                       a copy, so that the module is complete by itself
    go/calls.h                      the table of functions, and the calls that need no thought
    go/layout.go                    what C says of the header, for a test
    python/tqkv/_abi.py             constants, structs and prototypes for ctypes

What C lays out is not computed here: the bindings' layout tests compare the result with what a C compiler
says (tests/capi/layout.txt). Standard library only.

Usage: generate.py [--check | --self-test] [--header FILE] [--into FOLDER]
  --check      compares instead of writing; exit status 1 on a difference
  --self-test  headers that it does not understand are errors
"""
import argparse
import re
import sys
from pathlib import Path

from header import VOID, Header, HeaderError

HERE = Path(__file__).resolve().parent
MADE = "Made by generate.py from include/tqkv.h; do not edit. A test makes it anew and compares."
COLUMNS = 110


def filled(words, indent, first="", separator=" "):
    """Words as lines of at most COLUMNS: the first behind `first`, the others behind `indent`."""
    lines, line = [], first + words[0]
    for word in words[1:]:
        if len(line) + len(separator.rstrip()) + 1 + len(word) > COLUMNS - 2:
            lines.append(line + separator.rstrip())
            line = indent + word
        else:
            line += separator + word
    return "\n".join(lines + [line])


# ---- Rust

RUST = {
    "int32_t": "i32", "uint32_t": "u32", "int64_t": "i64", "uint64_t": "u64", "uint8_t": "u8",
    "size_t": "usize", "float": "f32", "double": "f64", "char": "c_char", "void": "c_void"
}
RUST_KEYWORDS = {"type", "in", "ref", "move", "fn", "use", "match", "loop"}


def rust_type(kind):
    if kind.callback:
        result, parameters = kind.callback
        pairs = "".join(f"\n{' ' * 12}{pair}," for pair in rust_pairs(parameters))
        return f'Option<unsafe extern "C" fn({pairs}\n{" " * 8}){rust_result(result)}>'
    text = RUST.get(kind.base, kind.base)
    for const in kind.pointees:
        text = f"*{'const' if const else 'mut'} {text}"
    return f"[{text}; {kind.length}]" if kind.length else text


def rust_pairs(fields):
    return [f"{'r#' if f.name in RUST_KEYWORDS else ''}{f.name}: {rust_type(f.type)}" for f in fields]


def rust_result(kind):
    return "" if kind == VOID else f" -> {rust_type(kind)}"


def rust_doc(about, indent):
    """Doc comment lines. Brackets and angles would be read as links and tags, stars as emphasis."""
    out, was_item, start = "", False, indent + "/// "
    for paragraph in about:
        is_item = paragraph.startswith("- ")
        if out and not (was_item and is_item):
            out += f"{indent}///\n"
        words = re.sub(r"([\[\]<>*])", r"\\\1", paragraph).split()
        out += filled(words, start + ("  " if is_item else ""), start) + "\n"
        was_item = is_item
    return out


def rust_struct(struct):
    fields = "".join(
        rust_doc(field.about, " " * 8) + f"        {pair},\n"
        for field, pair in zip(struct.fields, rust_pairs(struct.fields)))
    return rust_doc(struct.about, "    ") + f"    {struct.id} {struct.name} {{\n{fields}    }}\n"


def rust_function(function):
    head, end = f"    fn {function.name}(", f"){rust_result(function.result)};\n"
    pairs = rust_pairs(function.parameters) or [""]
    pairs[-1] += end
    return rust_doc(function.about, "    ") + filled(pairs, " " * 8, head, ", ")


def make_rust(header):
    constants = "".join(
        rust_doc(c.about, "    ") + f"    {c.name}: {'u64' if c.unsigned else 'i32'} = {c.value};\n"
        for c in header.constants)
    numbers = "".join(rust_doc(a.about, "    ") + f"    {a.name} = {RUST[a.base]};\n" for a in header.aliases)
    handles = "".join(rust_doc(o.about, "    ") + f"    {o.name};\n" for o in header.opaques)
    structs = "".join(map(rust_struct, header.structs))
    functions = "".join(map(rust_function, header.functions))
    return f"""// SPDX-License-Identifier: Apache-2.0
// {MADE}

use core::ffi::{{c_char, c_void}};
use core::mem::{{align_of, size_of}};

constants! {{
{constants}}}

numbers! {{
{numbers}}}

handles! {{
{handles}}}

structs! {{
{structs}}}

functions! {{
{functions}}}
"""


# ---- Go: C that cgo reads, and the layout as Go sees it

# Called by the loading code alone, or of no use where zero is the default.
WITHOUT_CALL = {"tq_last_error", "tq_last_error_copy", "tq_struct_size", "tq_cache_config_init",
                "tq_attend_params_init"}


def number(base, header):
    """The C number that a named one is."""
    return next((a.base for a in header.aliases if a.name == base), base)


def c_type(kind, header):
    """As C spells it, named numbers as the numbers that they are."""
    base = number(kind.base, header)
    text = ("const " if kind.pointees[:1] == (True,) else "") + base
    for i in range(len(kind.pointees)):
        text += "*" + (" const" if kind.pointees[i + 1:i + 2] == (True,) else "")
    return text


def is_plain(parameter, header):
    """A number, a handle, numbers or a struct that the call fills: no thought is needed. Tensors (host or
    device?) and structs that may hold pointers are for shim.c."""
    kind = parameter.type
    if kind.base == "void":
        return parameter.name == "stream"
    return not (kind.base in [s.name for s in header.structs] and kind.pointees == (True,))


def go_call(function, header):
    name, result = function.name.replace("tq_", "tqkv_", 1), c_type(function.result, header)
    status = function.result.base == "tq_status"
    parameters, arguments, sizes = ["const tqkv_api* api"], [], ""
    for field in function.parameters:
        stream = field.type.base == "void"
        parameters.append("uintptr_t stream" if stream else f"{c_type(field.type, header)} {field.name}")
        arguments.append("(void*)stream" if stream else field.name)
        if field.type.base in [s.name for s in header.structs]:
            sizes += f"  {field.name}->struct_size = sizeof *{field.name};\n"
    call = f"  return api->{function.name}("
    arguments = arguments or [""]
    arguments[-1] += ")"
    if status:
        result, call = "tq_status", f"  return tqkv_done(api, api->{function.name}("
        parameters.append("char* text")
        arguments.append("text)")
    parameters[-1] += ") {\n"
    arguments[-1] += ";\n}\n"
    return (filled(parameters, "    ", f"static inline {result} {name}(", ", ") + sizes +
            filled(arguments, "      ", call, ", "))


def make_go_calls(header):
    functions = filled([f"X({f.name})" for f in header.functions], "  ", "  ").replace("\n", " \\\n")
    structs = filled([f"X({s.id}, {s.name})" for s in header.structs], "  ", "  ").replace("\n", " \\\n")
    calls = "\n".join(
        go_call(f, header) for f in header.functions
        if f.name not in WITHOUT_CALL and all(is_plain(p, header) for p in f.parameters))
    return f"""// SPDX-License-Identifier: Apache-2.0
// {MADE}
// The table of the loaded library's functions, and one call for each function that takes numbers, handles
// and structs to fill; the others are written by hand in shim.c. A call takes the table first and a buffer
// for the error's text last, which it fills before the goroutine can move to another thread (the library
// keeps the text by thread). It sets struct_size.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "tqkv.h"

// Bytes of a text buffer: the library's own texts are not longer.
#define TQKV_TEXT 2048

// clang-format off
#define TQKV_FUNCTIONS(X) \\
{functions}

#define TQKV_STRUCTS(X) \\
{structs}

#define TQKV_MEMBER(f) __typeof__(f)* f;
typedef struct tqkv_api {{
  TQKV_FUNCTIONS(TQKV_MEMBER)
}} tqkv_api;

static inline tq_status tqkv_done(const tqkv_api* api, tq_status status, char* text) {{
  if (status != TQ_OK) api->tq_last_error_copy(text, TQKV_TEXT, NULL);
  return status;
}}

{calls}// clang-format on
"""


def make_go_layout(header):
    structs = "".join(f'\t\t{{"{s.name}", reflect.TypeFor[C.{s.name}]()}},\n' for s in header.structs)
    numbers = "".join(f'\t\t{{"{a.name}", reflect.TypeFor[C.{a.name}]()}},\n' for a in header.aliases)
    constants = "".join(f'\t\t{{"{c.name}", C.{c.name}}},\n' for c in header.constants)
    return f"""// SPDX-License-Identifier: Apache-2.0
// {MADE}

package tqkv

// #include "shim.h"
import "C"

import "reflect"

// What C says of the header, for the test that compares it with the table that the library's own tests make
// (test files cannot use cgo).

type namedType struct {{
\tname string
\tkind reflect.Type
}}

type namedConstant struct {{
\tname  string
\tvalue int64
}}

func layoutStructs() []namedType {{
\treturn []namedType{{
{structs}\t}}
}}

func layoutNumbers() []namedType {{
\treturn []namedType{{
{numbers}\t}}
}}

func layoutConstants() []namedConstant {{
\treturn []namedConstant{{
{constants}\t}}
}}
"""


# ---- Python


def python_class(name):
    return "".join(part.capitalize() for part in name.removeprefix("tq_").split("_"))


def python_type(kind, header, field=False):
    """The ctypes type. Of functions, tensors (void and float) are addresses, as integers."""
    base, stars = number(kind.base, header), len(kind.pointees)
    plain = "c_" + (base if base == "size_t" else base.removesuffix("_t"))
    if kind.length:
        return f"{plain} * {kind.length}"
    if base == "void" and not stars:
        return "None"
    if base == "void" or base == "float" and not field:
        return {0: plain, 1: "c_void_p", 2: "POINTER(c_void_p)"}[stars]
    if base == "char":
        return "c_char_p"
    if base in [o.name for o in header.opaques]:
        text, stars = python_class(base) + "Handle", stars - 1
    elif base in [s.name for s in header.structs]:
        text = python_class(base)
    else:
        text = plain
    return f"POINTER({text})" if stars else text


def python_struct(struct, header):
    out, fields = "", []
    for field in struct.fields:
        kind = python_type(field.type, header, True)
        if field.type.callback:
            kind = field.name.upper() + "_FUNCTION"
            result, parameters = field.type.callback
            types = [python_type(t, header) for t in [result] + [p.type for p in parameters]]
            out += f"{kind} = ctypes.CFUNCTYPE({', '.join(types)})\n"
        fields.append(f'("{field.name}", {kind})')
    body = filled(fields, " " * 16, "    _fields_ = [", ", ")
    return (out and out + "\n\n") + f"class {python_class(struct.name)}(Struct):\n{body}]\n\n\n"


def python_function(function, header):
    types = [python_type(p.type, header) for p in function.parameters] or [""]
    types[-1] += "]),"
    head = f'    "{function.name}": ({python_type(function.result, header)}, ['
    return filled(types, " " * 8, head, ", ") + "\n"


def make_python(header):
    constants = "".join(f'    "{c.name}": {c.value},\n' for c in header.constants)
    structs = "".join(python_struct(s, header) for s in header.structs)
    named = "".join(f'    "{s.name}": ({python_class(s.name)}, "{s.id}"),\n' for s in header.structs)
    handles = "".join(f"class {python_class(o.name)}Handle(c_void_p):\n    pass\n\n\n"
                      for o in header.opaques)
    functions = "".join(python_function(f, header) for f in header.functions)
    body = structs + handles + functions
    imports = ["POINTER"] + sorted(set(re.findall(r"\bc_\w+", body)))
    imports[-1] += ")"
    return f'''# SPDX-License-Identifier: Apache-2.0
# {MADE}
"""include/tqkv.h as ctypes: constants, structs, and the result and arguments of every function."""
import ctypes
{filled(imports, " " * 20, "from ctypes import (", ", ")}

CONSTANTS = {{
{constants}}}


class Struct(ctypes.Structure):
    """struct_size is set by the constructor; the other fields are zero unless given."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)

    def __repr__(self):
        shown = ", ".join(f"{{name}}={{getattr(self, name)!r}}" for name, *_ in self._fields_
                          if name not in ("struct_size", "reserved"))
        return f"{{type(self).__name__}}({{shown}})"


{structs}# C name: (class, its id for tq_struct_size)
STRUCTS = {{
{named}}}


# Handles are distinct classes, so that a batch passed where a cache belongs is a TypeError and not a crash.
{handles}# name: (result, arguments). Tensors are addresses.
FUNCTIONS = {{
{functions}}}
'''


# ---- all of them


def make_all(text):
    header = Header(text)
    return {
        "rust/tqkv-sys/src/bindings.rs": make_rust(header),
        "go/tqkv.h": text,
        "go/calls.h": make_go_calls(header),
        "go/layout.go": make_go_layout(header),
        "python/tqkv/_abi.py": make_python(header),
    }


# A line of the header, and one in its place that must be refused.
BREAKS = (
    ("int32_t num_layers;", "long num_layers;"),
    ("int32_t num_layers;", "int32_t num_layers : 4;"),
    ("int32_t num_layers;", "void num_layers;"),
    ("#define TQ_ERROR_IO 14", "#define TQ_ERROR_IO (7 * 2)"),
    ("typedef int32_t tq_dtype;", "typedef enum { TQ_A } tq_dtype;"),
    ("#define TQ_STRUCT_ALLOCATOR 8", "#define TQ_STRUCT_OTHER 8"),
    ("TQ_API tq_status tq_batch_destroy(tq_batch *batch);", "tq_status tq_batch_destroy(tq_batch *batch);"),
    ("const float *sink_logits;", "const volatile float *sink_logits;"),
)


def self_test(text):
    good = True
    for old, new in BREAKS:
        try:
            if old not in text:
                raise LookupError(f"the header has no '{old}' any more")
            make_all(text.replace(old, new, 1))
            good = False
            print(f"not ok - '{new}' was accepted")
        except HeaderError as error:
            print(f"ok - '{new}' is refused: {error}")
        except LookupError as error:
            good = False
            print(f"not ok - {error}")
    return 0 if good else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--header", type=Path, default=HERE.parent / "include" / "tqkv.h")
    parser.add_argument("--into", type=Path, default=HERE)
    options = parser.parse_args()
    text = options.header.read_text(encoding="ascii")
    if options.self_test:
        return self_test(text)
    differing = []
    for name, made in make_all(text).items():
        path = options.into / name
        if path.exists() and path.read_text(encoding="ascii") == made:
            continue
        differing.append(name)
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made, encoding="ascii")
    if options.check and differing:
        print(f"not what generate.py makes of {options.header.name}: {', '.join(differing)}")
        print("run bindings/generate.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
