#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes src/bindings.rs from include/tqkv.h: constants, types, functions and the table of function pointers, with the header's comments.

The header is plain C99 in a fixed style, so a strict reader of that style is enough, and needs neither libclang nor a build of a generator.
Strict means: every line of the header is either understood or an error. What C lays out is not computed here; the layout test compares the
result with what a C compiler says (tests/capi/layout.txt).

Usage: generate.py [--check] [header [output]]     --check compares instead of writing; exit status 1 on a difference
"""
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = HERE.parents[2] / "include" / "tqkv.h"
OUTPUT = HERE / "src" / "bindings.rs"

SCALARS = {
    "int32_t": "i32", "uint32_t": "u32", "int64_t": "i64", "uint64_t": "u64", "uint8_t": "u8",
    "size_t": "usize", "float": "f32", "double": "f64", "char": "c_char", "void": "c_void"
}
KEYWORDS = {"type", "in", "ref", "move", "fn", "use", "match", "loop"}


class HeaderError(Exception):
    pass


def rust_type(c_type, types):
    """The Rust type of a C type without its declarator: 'const float *' -> '*const f32'."""
    words = re.findall(r"\w+|\*", c_type)
    const = words[0] == "const"
    base = words[1 if const else 0]
    if base not in SCALARS and base not in types:
        raise HeaderError(f"unknown type '{c_type}'")
    result, pending_const = SCALARS.get(base, base), const
    for word in words[2 if const else 1:]:
        if word == "*":
            result = f"*{'const' if pending_const else 'mut'} {result}"
            pending_const = False
        elif word == "const":
            pending_const = True
        else:
            raise HeaderError(f"unknown type '{c_type}'")
    if result == "c_void":
        raise HeaderError(f"a value of type void: '{c_type}'")
    return result


def rust_name(name):
    return f"r#{name}" if name in KEYWORDS else name


def declarator(text, types):
    """'const int64_t *ids' or 'char name[128]' or a function pointer -> (name, Rust type)."""
    pointer = re.fullmatch(r"(.+?)\(\*(\w+)\)\((.*)\)", text)
    if pointer:
        returns, name, parameters = pointer.groups()
        return name, f"Option<unsafe extern \"C\" fn({parameter_list(parameters, types)}){return_type(returns.strip(), types)}>"
    match = re.fullmatch(r"(.*?[\s*])(\w+)(?:\[(\d+)\])?", text)
    if not match:
        raise HeaderError(f"not understood: '{text}'")
    kind = rust_type(match.group(1), types)
    return match.group(2), f"[{kind}; {match.group(3)}]" if match.group(3) else kind


def parameter_list(text, types):
    if text.strip() == "void":
        return ""
    pairs = (declarator(" ".join(part.split()), types) for part in text.split(","))
    return ", ".join(f"{rust_name(name)}: {kind}" for name, kind in pairs)


def return_type(text, types):
    return "" if text == "void" else f" -> {rust_type(text, types)}"


def comment_text(raw):
    """The words of a C comment, lines kept."""
    lines = [
        re.sub(r"^\s*\*? ?", "", line).rstrip()
        for line in raw.strip().removeprefix("/*").removesuffix("*/").split("\n")
    ]
    while lines and not lines[0].strip():
        lines.pop(0)
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def doc(lines, indent):
    """Doc comment lines. Brackets and angles would be read as links and tags."""
    escaped = (re.sub(r"([\[\]<>*_])", r"\\\1", line.strip()) for line in lines)
    return "".join(f"{indent}///{' ' if line else ''}{line}\n" for line in escaped)


class Reader:
    """Splits the header into items: constant, alias, opaque, struct, function, each with its comment."""

    def __init__(self, text):
        match = re.search(r'extern "C" \{\n#endif\n(.*)#ifdef __cplusplus', text, re.S)
        head = re.search(r"#define TQ_VERSION_MAJOR.*?(?=#if )", text, re.S)
        if not match or not head:
            raise HeaderError("the frame of the header has changed")
        self.text = head.group(0) + match.group(1)
        self.types, self.items, self.comment = set(), [], []
        # the last comment since an empty line: that of a function whose constants stand between the two
        self.paragraph = []

    def read(self):
        patterns = (
            (r"/\* ---- .*? ---- *-* *\*/|/\* ---- .*?\*/\n", self.section),
            (r"/\*(.*?)\*/", self.block_comment),
            (r"#define (TQ_\w+) (\d+)(u?)[ \t]*(?:/\*(.*?)\*/)?(?=\n)", self.constant),
            (r"typedef (\w+) (tq_\w+);[ \t]*(?:/\*(.*?)\*/|//(.*))?(?=\n)", self.alias),
            (r"typedef struct (tq_\w+) \1;[ \t]*(?:/\*(.*?)\*/)?(?=\n)", self.opaque),
            (r"typedef struct (tq_\w+) \{\n(.*?)\n\} \1;", self.struct),
            (r"TQ_API ([\w ]+?[ *]+)(tq_\w+)\(([^;]*)\);", self.function),
        )
        position = 0
        while position < len(self.text):
            blank = re.compile(r"[ \t]*\n").match(self.text, position)
            if blank:
                position = blank.end()
                if self.text[position:position + 1] == "\n":
                    self.comment = self.paragraph = []
                continue
            for pattern, handler in patterns:
                match = re.compile(pattern, re.S if pattern[0] != "#" else 0).match(self.text, position)
                if match:
                    handler(match)
                    position = match.end()
                    break
            else:
                raise HeaderError("not understood: " + self.text[position:position + 100].split("\n")[0])
        return self.items

    def section(self, _):
        self.comment = []

    def block_comment(self, match):
        self.comment = self.paragraph = comment_text(match.group(0))

    def take_comment(self, trailing=None):
        """The comment on the item's own line, else the one above it."""
        taken, self.comment = (comment_text(trailing), self.comment) if trailing else (self.comment, [])
        return taken

    def constant(self, match):
        name, value, unsigned, trailing = match.groups()
        self.items.append(
            ("constant", name, "u64" if unsigned else "i32", value, self.take_comment(trailing)))

    def alias(self, match):
        base, name, block, _ = match.groups()
        self.types.add(name)
        self.items.append(("alias", name, rust_type(base, self.types), self.take_comment(block)))

    def opaque(self, match):
        self.types.add(match.group(1))
        self.items.append(("opaque", match.group(1), self.take_comment(match.group(2))))

    def struct(self, match):
        name, body = match.groups()
        self.types.add(name)
        about, fields, position = self.take_comment(), [], 0
        field = re.compile(r"\s*([^;]+?);[ \t]*(?:/\*(.*?)\*/)?", re.S)
        while body[position:].strip():
            found = field.match(body, position)
            if not found or "/*" in found.group(1):
                raise HeaderError(f"{name}: not understood: {body[position:position + 80]}")
            fields.append((*declarator(" ".join(found.group(1).split()), self.types),
                           comment_text(found.group(2) or "")))
            position = found.end()
        if fields[0][:2] != ("struct_size", "u32"):
            raise HeaderError(f"{name}: the first field is not struct_size")
        self.items.append(("struct", name, fields, about))

    def function(self, match):
        returns, name, parameters = match.groups()
        self.items.append(
            ("function", name, parameter_list(parameters,
                                              self.types), return_type(returns.strip(),
                                                                       self.types), self.take_comment()
             or self.paragraph))


HEAD = """// SPDX-License-Identifier: Apache-2.0
// Made by generate.py from include/tqkv.h; do not edit. A test regenerates it and compares.

use core::ffi::{c_char, c_void};
use core::marker::{PhantomData, PhantomPinned};

"""

TABLE_DOC = """/// Every function of the library. Made by [`Api::from_symbols`] from an opened library, or by `Api::linked` with the feature `link`.
///
/// The functions are `unsafe` to call: their contracts are those of `tqkv.h`, repeated here.
"""


def emit_struct(name, fields, about):
    out = doc(about, "") or f"/// `{name}` of `tqkv.h`.\n"
    out += f"#[repr(C)]\n#[derive(Clone, Copy, Debug)]\npub struct {name} {{\n"
    for field, kind, comment in fields:
        out += (doc(comment, "    ") or f"    /// `{field}`.\n") + f"    pub {rust_name(field)}: {kind},\n"
    out += f"""}}

impl Default for {name} {{
    /// All zero, which means the defaults, but for `struct_size`.
    fn default() -> Self {{
        // SAFETY: integers, floats, raw pointers and optional function pointers may all be zero.
        let mut zero: Self = unsafe {{ core::mem::zeroed() }};
        zero.struct_size = core::mem::size_of::<Self>() as u32;
        zero
    }}
}}

"""
    return out


def emit_layout(aliases, structs):
    out = "/// Name, size and whether it is signed, of every named number type.\npub const TYPES: &[(&str, usize, bool)] = &[\n"
    out += "".join(f'    ("{name}", core::mem::size_of::<{name}>(), {name}::MIN != 0),\n'
                   for name in aliases) + "];\n\n"
    out += "/// Name, size, alignment and fields (name, offset, size) of every public struct, for comparison with what a C compiler says.\n"
    out += "pub const LAYOUT: &[(&str, usize, usize, &[(&str, usize, usize)])] = &[\n"
    for name, fields in structs:
        out += f'    ("{name}", core::mem::size_of::<{name}>(), core::mem::align_of::<{name}>(), &[\n'
        for field, kind, _ in fields:
            out += f'        ("{field}", core::mem::offset_of!({name}, {rust_name(field)}), core::mem::size_of::<{kind}>()),\n'
        out += "    ]),\n"
    return out + "];\n\n"


def emit_struct_ids(constants, structs):
    names, out = {name
                  for name, _ in structs
                  }, "/// Id for `tq_struct_size`, name and size here of every public struct.\n"
    out += "pub const STRUCTS: &[(i32, &str, usize)] = &[\n"
    for constant in constants:
        if constant.startswith("TQ_STRUCT_"):
            stem = "tq_" + constant.removeprefix("TQ_STRUCT_").lower()
            name = stem if stem in names else stem + "_t"
            names.remove(name)
            out += f'    ({constant}, "{name}", core::mem::size_of::<{name}>()),\n'
    if names:
        raise HeaderError(f"structs without a TQ_STRUCT_ id: {sorted(names)}")
    return out + "];\n\n"


def emit_table(functions):
    out = TABLE_DOC + "#[derive(Clone, Copy, Debug)]\npub struct Api {\n"
    for name, parameters, returns, about in functions:
        out += doc(about, "    ") + f"    pub {name}: unsafe extern \"C\" fn({parameters}){returns},\n"
    out += "}\n\nimpl Api {\n    /// Names of all functions, in the header's order.\n    pub const NAMES: &'static [&'static str] = &[\n"
    out += "".join(f'        "{name}",\n' for name, *_ in functions)
    out += """    ];

    /// Fills the table from `symbol`, which returns the address of a name or `None`. If any is missing, all the missing names are the error.
    ///
    /// # Safety
    /// Every address must be that of the function of `tqkv.h` with that name, and stay valid as long as the table is used.
    pub unsafe fn from_symbols(mut symbol: impl FnMut(&'static str) -> Option<*mut c_void>) -> Result<Api, Vec<&'static str>> {
        let mut missing = Vec::new();
        let mut find = |name| {
            symbol(name).filter(|address| !address.is_null()).unwrap_or_else(|| {
                missing.push(name);
                core::ptr::null_mut()
            })
        };
"""
    out += "".join(f'        let {name} = find("{name}");\n' for name, *_ in functions)
    out += """        if !missing.is_empty() {
            return Err(missing);
        }
        // SAFETY: not null; the caller answers for the types.
        Ok(unsafe {
            Api {
"""
    pointers = "".join(
        f"                {name}: core::mem::transmute::<*mut c_void, unsafe extern \"C\" fn({parameters}){returns}>({name}),\n"
        for name, parameters, returns, _ in functions)
    out += pointers + """            }
        })
    }

    /// The functions that the program was linked with.
    #[cfg(feature = "link")]
    pub fn linked() -> Api {
        Api {
"""
    out += "".join(f"            {name}: linked::{name},\n" for name, *_ in functions)
    out += "        }\n    }\n}\n\n"
    out += '/// The functions as symbols of the linked library.\n#[cfg(feature = "link")]\npub mod linked {\n    use super::*;\n    extern "C" {\n'
    for name, parameters, returns, about in functions:
        out += doc(about, "        ") + f"        pub fn {name}({parameters}){returns};\n"
    return out + "    }\n}\n"


def generate(header):
    items = Reader(header).read()
    out = HEAD
    aliases, structs, functions, constants = [], [], [], []
    for kind, name, *rest in items:
        if kind == "constant":
            rust, value, about = rest
            out += (doc(about, "")
                    or f"/// `{name}` of `tqkv.h`.\n") + f"pub const {name}: {rust} = {value};\n\n"
            constants.append(name)
        elif kind == "alias":
            aliases.append(name)
            out += (doc(rest[1], "") or f"/// `{name}` of `tqkv.h`.\n") + f"pub type {name} = {rest[0]};\n\n"
        elif kind == "opaque":
            out += (doc(rest[0], "") or f"/// Opaque `{name}` of `tqkv.h`.\n")
            out += f"#[repr(C)]\n#[derive(Debug)]\npub struct {name} {{\n    _private: [u8; 0],\n    _marker: PhantomData<(*mut u8, PhantomPinned)>,\n}}\n\n"
        elif kind == "struct":
            structs.append((name, rest[0]))
            out += emit_struct(name, *rest)
        else:
            functions.append((name, *rest))
    out += "/// Name and value of every constant.\npub const CONSTANTS: &[(&str, i64)] = &[\n"
    out += "".join(f'    ("{name}", {name} as i64),\n' for name in constants) + "];\n\n"
    return out + emit_struct_ids(constants, structs) + emit_layout(aliases, structs) + emit_table(functions)


def main(arguments):
    check = arguments[:1] == ["--check"]
    paths = arguments[1:] if check else arguments
    header, output = Path(paths[0]) if paths else HEADER, Path(paths[1]) if paths[1:] else OUTPUT
    text = generate(header.read_text(encoding="ascii"))
    if not check:
        output.write_text(text, encoding="ascii")
        return 0
    if output.read_text(encoding="ascii") == text:
        return 0
    print(
        f"{output.name} is not what generate.py makes of {header.name}: run bindings/rust/tqkv-sys/generate.py"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
