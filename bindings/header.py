# SPDX-License-Identifier: Apache-2.0
"""Reads include/tqkv.h into plain lists, for generate.py.

The header is C99 in a fixed style, so a strict reader of that style is enough and needs neither libclang nor
a compiler. Strict means that every line is either understood or an error: a declaration that this file cannot
read stops the generator, and never goes missing from a binding.
"""
import re
from collections import namedtuple

# base: the C name without pointers. pointees: for every '*', from the inside out, whether it points to const.
# length: of an array, else 0. callback: (result type, parameters) of a pointer to a function, else None.
Type = namedtuple("Type", "base pointees length callback")
Field = namedtuple("Field", "name type about")  # of a struct; a parameter has no comment of its own
Constant = namedtuple("Constant", "name value unsigned about")
Alias = namedtuple("Alias", "name base about")
Opaque = namedtuple("Opaque", "name about")
Struct = namedtuple("Struct", "name fields about id")  # id: the TQ_STRUCT_ constant
Function = namedtuple("Function", "name result parameters about")

SCALARS = ("int32_t", "uint32_t", "int64_t", "uint64_t", "uint8_t", "size_t", "float", "double", "char",
           "void")
VOID = Type("void", (), 0, None)


class HeaderError(Exception):
    pass


def paragraphs(raw):
    """The paragraphs of a C comment. Indented by two, a line is an item of a list, "- "; further in, or at
    the margin after a line at the margin, it goes on with the one before."""
    out, in_item = [], False
    for line in raw.strip().removeprefix("/*").removesuffix("*/").split("\n"):
        line = re.sub(r"^\s*\* ?", "", line).rstrip()
        indent, words = len(line) - len(line.lstrip()), " ".join(line.split())
        if not words:
            continue
        if out and (indent > 2 if in_item else indent < 2):
            out[-1] += " " + words
            continue
        in_item = bool(out) and indent >= 2
        out.append(("- " if in_item else "") + words)
    return out


class Header:
    """constants, aliases, opaques, structs and functions, each in the header's order."""

    def __init__(self, text):
        frame = re.search(r'extern "C" \{\n#endif\n(.*)#ifdef __cplusplus', text, re.S)
        versions = re.search(r"#define TQ_VERSION_MAJOR.*?(?=#if )", text, re.S)
        if not frame or not versions:
            raise HeaderError("the frame of the header has changed")
        self.constants, self.aliases, self.opaques, self.structs, self.functions = [], [], [], [], []
        self.types = set(SCALARS)
        self.comment = []  # waits for the item below it
        self.paragraph = []  # the last comment since an empty line: of a function behind its constants
        self.read(versions.group(0) + frame.group(1))
        self.number_structs()

    def read(self, text):
        trailing = r"[ \t]*(?:/\*(.*?)\*/)?(?=\n)"
        patterns = [(re.compile(pattern, flags), handler) for pattern, flags, handler in (
            (r"/\* ---- [^\n]*\*/", 0, self.read_section),
            (r"/\*.*?\*/", re.S, self.read_comment),
            (r"#define (TQ_\w+) (\d+)(u?)" + trailing, 0, self.read_constant),
            (r"typedef (\w+) (tq_\w+);" + trailing, 0, self.read_alias),
            (r"typedef struct (tq_\w+) \1;" + trailing, 0, self.read_opaque),
            (r"typedef struct (tq_\w+) \{\n(.*?)\n\} \1;", re.S, self.read_struct),
            (r"TQ_API ([\w ]+?[ *]+)(tq_\w+)\(([^;]*)\);", re.S, self.read_function),
        )]
        position = 0
        while position < len(text):
            blank = re.compile(r"[ \t]*\n").match(text, position)
            if blank:
                position = blank.end()
                if text[position:position + 1] == "\n":
                    self.comment = self.paragraph = []
                continue
            for pattern, handler in patterns:
                match = pattern.match(text, position)
                if match:
                    handler(match)
                    position = match.end()
                    break
            else:
                raise HeaderError("not understood: " + text[position:position + 100].split("\n")[0])

    def read_section(self, _):
        self.comment = self.paragraph = []

    def read_comment(self, match):
        self.comment = self.paragraph = paragraphs(match.group(0))

    def take_comment(self, trailing=None):
        """The comment on the item's own line, else the one above it."""
        if trailing:
            return paragraphs(trailing)
        taken, self.comment = self.comment, []
        return taken

    def read_constant(self, match):
        name, value, unsigned, trailing = match.groups()
        self.constants.append(Constant(name, int(value), bool(unsigned), self.take_comment(trailing)))

    def read_alias(self, match):
        base, name, trailing = match.groups()
        if base not in SCALARS:
            raise HeaderError(f"{name}: unknown type '{base}'")
        self.types.add(name)
        self.aliases.append(Alias(name, base, self.take_comment(trailing)))

    def read_opaque(self, match):
        self.types.add(match.group(1))
        self.opaques.append(Opaque(match.group(1), self.take_comment(match.group(2))))

    def read_struct(self, match):
        name, body = match.groups()
        self.types.add(name)
        about, fields, position = self.take_comment(), [], 0
        field = re.compile(r"\s*([^;]+?);[ \t]*(?:/\*(.*?)\*/)?", re.S)
        while body[position:].strip():
            found = field.match(body, position)
            if not found or "/*" in found.group(1):
                raise HeaderError(f"{name}: not understood: {body[position:position + 80]}")
            fields.append(self.declarator(found.group(1), paragraphs(found.group(2) or "")))
            position = found.end()
        if fields[0][:2] != ("struct_size", Type("uint32_t", (), 0, None)):
            raise HeaderError(f"{name}: the first field is not struct_size")
        self.structs.append(Struct(name, fields, about, None))

    def read_function(self, match):
        result, name, parameters = match.groups()
        self.functions.append(
            Function(name, self.type_of(result), self.parameters(parameters),
                     self.take_comment() or self.paragraph))

    def parameters(self, text):
        if text.strip() == "void":
            return []
        return [self.declarator(part) for part in text.split(",")]

    def declarator(self, text, about=()):
        """'const int64_t *ids', 'char name[128]' or a pointer to a function."""
        text = " ".join(text.split())
        callback = re.fullmatch(r"(.+?)\(\*(\w+)\)\((.*)\)", text)
        if callback:
            result, name, parameters = callback.groups()
            signature = self.type_of(result), self.parameters(parameters)
            return Field(name, Type("void", (), 0, signature), about)
        match = re.fullmatch(r"(.*?[\s*])(\w+)(?:\[(\d+)\])?", text)
        if not match:
            raise HeaderError(f"not understood: '{text}'")
        kind = self.type_of(match.group(1))
        if kind == VOID:
            raise HeaderError(f"a value of type void: '{text}'")
        return Field(match.group(2), kind._replace(length=int(match.group(3) or 0)), about)

    def type_of(self, text):
        """'const float *const *' -> float, pointees (const, const)."""
        words = re.findall(r"\w+|\*", text)
        const = words[0] == "const"
        base, pointees = words[1 if const else 0], []
        if base not in self.types:
            raise HeaderError(f"unknown type '{text.strip()}'")
        for word in words[2 if const else 1:]:
            if word == "*":
                pointees.append(const)
                const = False
            elif word == "const" and pointees:
                const = True
            else:
                raise HeaderError(f"unknown type '{text.strip()}'")
        return Type(base, tuple(pointees), 0, None)

    def number_structs(self):
        """Every struct has its TQ_STRUCT_ constant, and the other way round."""
        ids = {"tq_" + c.name.removeprefix("TQ_STRUCT_").lower(): c.name
               for c in self.constants if c.name.startswith("TQ_STRUCT_")}
        odd = set(ids) ^ {s.name for s in self.structs}
        if odd:
            raise HeaderError(f"TQ_STRUCT_ ids and structs differ: {sorted(odd)}")
        self.structs = [s._replace(id=ids[s.name]) for s in self.structs]
