# SPDX-License-Identifier: Apache-2.0
"""What include/tqkv.h declares, by a parser of just the C that it uses."""
import dataclasses
import re
from pathlib import Path


@dataclasses.dataclass
class Header:
    constants: dict   # name -> number
    structs: dict     # name -> [(C type, field name, array length or None)]
    functions: dict   # name -> (result type, [argument types])
    typedefs: dict    # name -> C type


def parse(path):
    text = Path(path).read_text()
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"//[^\n]*", " ", text)
    constants = {
        name: int(value, 0)
        for name, value in re.findall(r"^#define (TQ_[A-Z0-9_]+) (-?\d+)u?\s*$", text, re.M)
    }
    text = re.sub(r"^\s*#[^\n]*", "", text, flags=re.M)
    structs = {}
    for body, name in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", text, re.S):
        structs[name] = [_field(declaration) for declaration in body.split(";") if declaration.strip()]
    typedefs = {name: kind for kind, name in re.findall(r"^typedef (\w+) (\w+);", text, re.M)}
    functions = {}
    for result, name, arguments in re.findall(r"TQ_API ([\w ]+?\*?)\s*(tq_\w+)\(([^;]*)\);", text):
        parts = [] if arguments.strip() == "void" else [_argument(a) for a in arguments.split(",")]
        functions[name] = (result.strip(), parts)
    return Header(constants, structs, functions, typedefs)


def _field(declaration):
    declaration = " ".join(declaration.split())
    if "(" in declaration:  # a callback
        return "callback", re.search(r"\(\*(\w+)\)", declaration).group(1), None
    kind, star, name, _, length = re.fullmatch(r"((?:const )?\w+) (\**)(\w+)(\[(\d+)\])?",
                                               declaration).groups()
    return kind + (" " + star if star else ""), name, int(length) if length else None


def _argument(declaration):
    declaration = " ".join(declaration.split())
    return re.fullmatch(r"(.*?)\w+", declaration).group(1).strip()
