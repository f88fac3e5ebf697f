# SPDX-License-Identifier: Apache-2.0
"""The mutants of a source file, and the file with all of them in it.

libclang says where an expression begins and ends. A mutant is another text for such a place: a comparison
turned or with its border moved, + and -, * and /, && and || exchanged, a number one higher, true and false
exchanged, min and max exchanged, a condition negated, a check of TQ_CHECK that always passes, a call or an
assignment left out. instrumented() puts all of them into one text, each chosen at run time:
`a <= b` becomes `(tq_is(17) ? (a < b) : (a <= b))`. Since one is active at a time, the text chosen holds no
others. In constant expressions tq_is is false (choice.h): places that are always one (template arguments,
array bounds, labels, static_assert, constexpr variables) are listed as compile_time and left as they are.
"""
import collections
import dataclasses
import os
import re
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SOURCES = re.compile(r"src/[^/]+\.(cpp|h)|src/format/[^/]+\.h")
SWAPS = {"<=": ["<"], ">=": [">"], "<": ["<="], ">": [">="], "==": ["!="], "!=": ["=="], "&&": ["||"],
         "||": ["&&"], "+": ["-"], "-": ["+"], "*": ["+"], "/": ["*"], "%": ["*"], "+=": ["-="], "-=": ["+="],
         "|": ["&"], "&": ["|"], "^": ["|"], "<<": [">>"], ">>": ["<<"], "++": ["--"], "--": ["++"]}
# TQ_CHECK is a macro, in whose arguments libclang knows no places; here it is a function.
CHECK = "#define TQ_CHECK ::tq_check\ntemplate <typename T, typename... Any> void tq_check(const T&, Any...);"


@dataclasses.dataclass(frozen=True)
class Mutant:
    name: str  # of the file
    line: int
    start: int  # of the place, in characters
    end: int
    old: str  # what differs, short
    new: str
    text: str  # what stands in the place instead
    compile_time: bool = False
    oracle: bool = False  # in audit(), which only tests call: a weaker one is not seen while all is well

    def key(self, line_text):
        return self.name, " ".join(line_text.split()), f"{self.old} -> {self.new}"


def without_comments(text):
    """On one line."""
    keep = lambda match: match.group(0) if match.group(0)[0] in "\"'" else " "
    pattern = r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'|//[^\n]*|/\*.*?\*/'
    return " ".join(re.sub(pattern, keep, text, flags=re.S).split())


def parser():
    try:
        from clang import cindex
    except ImportError:
        raise SystemExit("tests/mutation needs libclang: python3 -m pip install -r "
                         "tests/mutation/requirements.txt") from None
    resources = subprocess.run(["clang", "-print-resource-dir"], capture_output=True, text=True,
                               check=True).stdout.strip()
    return cindex, ["-xc++", "-ferror-limit=0", "-std=c++17", "-DNDEBUG", "-DTQ_CUDA=0",
                    '-DTQ_CUDA_ARCHS_BUILT=""', "-DTQ_BUILDING_LIBRARY", "-isystem", resources + "/include",
                    *(f"-I{os.path.join(ROOT, folder)}" for folder in ("src", "include", "."))]


class Finder:
    """Walks the tree of one file and lists its mutants."""

    def __init__(self, name):
        self.cindex, arguments = parser()
        self.name, self.path = name, os.path.join(ROOT, name)
        with open(self.path, "rb") as file:
            self.text = file.read().decode("ascii")  # places are counted in bytes
        status = os.path.join(ROOT, "src/status.h")
        with open(status, encoding="ascii") as file:
            fake = re.sub(r"#define TQ_CHECK\((?:[^\n]*\\\n)*[^\n]*", CHECK, file.read())
        unsaved = [] if self.path == status else [(status, fake)]
        self.unit = self.cindex.Index.create().parse(self.path, arguments, unsaved)
        # Intrinsics of another compiler's version, in headers of the system, do no harm.
        fatal = [d for d in self.unit.diagnostics if d.severity >= self.cindex.Diagnostic.Error and
                 (d.severity == self.cindex.Diagnostic.Fatal or str(d.location.file).startswith(ROOT))]
        if fatal:
            raise SystemExit(f"run.py: libclang does not understand {name}: {fatal[0]}")
        self.found, self.kinds, self.in_audit = {}, self.cindex.CursorKind, False

    def mutants(self):
        for cursor in self.unit.cursor.get_children():
            if cursor.location.file and cursor.location.file.name == self.path:
                self.visit(cursor, None, False)
        return sorted(self.found.values(), key=lambda m: (m.start, m.end, m.new))

    # ---- places ----

    def span(self, cursor):
        return cursor.extent.start.offset, cursor.extent.end.offset

    def source(self, cursor):
        start, end = self.span(cursor)
        return self.text[start:end]

    def add(self, start, end, old, new, text, constant):
        if self.text[start:end].count("(") != self.text[start:end].count(")") or start >= end:
            return  # a piece of a macro
        line = self.text.count("\n", 0, start) + 1
        old, new = (without_comments(each)[:60] for each in (old, new))
        self.found.setdefault((start, end, new), Mutant(self.name, line, start, end, old, new,
                                                        without_comments(text), constant, self.in_audit))

    # ---- the walk ----

    def visit(self, cursor, parent, constant):
        k, children = self.kinds, list(cursor.get_children())
        if cursor.kind in (k.CXX_METHOD, k.FUNCTION_DECL, k.FUNCTION_TEMPLATE, k.CONSTRUCTOR):
            self.in_audit = cursor.spelling == "audit"
        constant = constant or self.is_constant(cursor)
        if cursor.kind in (k.BINARY_OPERATOR, k.COMPOUND_ASSIGNMENT_OPERATOR) and len(children) == 2:
            self.binary(cursor, children[0], children[1], constant)
        elif cursor.kind == k.CALL_EXPR:
            self.call(cursor, children, constant)
        elif cursor.kind == k.UNARY_OPERATOR:
            self.step(cursor, constant)
        elif cursor.kind in (k.INTEGER_LITERAL, k.FLOATING_LITERAL):
            self.number(cursor, parent, constant)
        elif cursor.kind == k.CXX_BOOL_LITERAL_EXPR and self.source(cursor) in ("true", "false"):
            old = self.source(cursor)
            new = "false" if old == "true" else "true"
            self.add(*self.span(cursor), old, new, new, constant)
        elif cursor.kind == k.CONDITIONAL_OPERATOR or cursor.kind == k.IF_STMT:
            self.condition(cursor, children, constant)
        statements = self.statements(cursor, children)
        for at, child in enumerate(children):
            if child in statements:
                self.left_out(child, constant)
            fixed = (cursor.kind == k.CASE_STMT and at == 0) or \
                (cursor.kind == k.IF_STMT and at == 0 and re.match(r"if\s+constexpr", self.source(cursor)))
            self.visit(child, cursor, constant or bool(fixed))

    def is_constant(self, cursor):
        """Whether all below is a constant expression."""
        k = self.kinds
        if cursor.kind in (k.STATIC_ASSERT, k.ENUM_CONSTANT_DECL, k.TEMPLATE_NON_TYPE_PARAMETER):
            return True
        if cursor.kind != k.VAR_DECL:
            return False
        head = self.text[cursor.extent.start.offset:cursor.location.offset]
        inside = cursor.semantic_parent.kind
        return "constexpr" in head or (head.startswith("const ") and "*" not in head and
                                       inside in (k.NAMESPACE, k.TRANSLATION_UNIT))

    def binary(self, cursor, left, right, constant):
        middle = without_comments(self.text[left.extent.end.offset:right.extent.start.offset])
        if middle in ("+", "+=", "-") and any(side.type.get_canonical().kind == self.cindex.TypeKind.RECORD
                                              for side in (left, right)):
            return  # texts are joined
        start, end = self.span(cursor)
        for new in SWAPS.get(middle, ()):
            text = (self.text[start:left.extent.end.offset] + f" {new} " +
                    self.text[right.extent.start.offset:end])
            self.add(start, end, middle, new, text, constant)

    def call(self, cursor, children, constant):
        text, (start, end) = self.source(cursor), self.span(cursor)
        if text.startswith("TQ_CHECK("):
            arguments = list(cursor.get_arguments())
            if arguments:
                self.add(*self.span(arguments[0]), self.source(arguments[0]), "true", "true", constant)
            return
        match = re.match(r"std::(min|max)\b", text)
        if match:
            new = "std::" + {"min": "max", "max": "min"}[match.group(1)]
            self.add(start, end, match.group(0), new, new + text[match.end():], constant)
        elif re.fullmatch(r"operator(==|!=|<=|>=|<|>)", cursor.spelling) and len(children) == 3:
            self.binary(cursor, children[0], children[2], constant)

    def step(self, cursor, constant):
        text = self.source(cursor)
        for old in ("++", "--"):
            if text.startswith(old):
                self.add(*self.span(cursor), old, SWAPS[old][0], SWAPS[old][0] + text[2:], constant)
            elif text.endswith(old):
                self.add(*self.span(cursor), old, SWAPS[old][0], text[:-2] + SWAPS[old][0], constant)

    def number(self, cursor, parent, constant):
        text, (start, end) = self.source(cursor), self.span(cursor)
        if not re.fullmatch(r"(0x[0-9A-Fa-f']+|\d+)[uUlL]*|[\d.]+(e[+-]?\d+)?f?", text):
            return
        if parent is not None and parent.kind in (self.kinds.VAR_DECL, self.kinds.FIELD_DECL):
            # an array bound or a template argument of its type
            constant = constant or start < parent.location.offset or self.text[start - 1] == "["
        if parent is not None and parent.kind == self.kinds.FIELD_DECL and parent.is_bitfield():
            constant = True
        if self.text[start - 1] == "<" and self.text[end] in ">,":
            constant = True  # a template argument
        match = re.fullmatch(r"(\d+)([uUlL]*)", text)
        new = str(int(match.group(1)) + 1) + match.group(2) if match else text + " + 1"
        self.add(start, end, text, new, new, constant)

    def condition(self, cursor, children, constant):
        if not children or not children[0].kind.is_expression():
            return  # with a declaration
        if cursor.kind == self.kinds.IF_STMT:
            if re.match(r"if\s+constexpr", self.source(cursor)):
                return
            head = without_comments(self.text[cursor.extent.start.offset:children[0].extent.start.offset])
            if head != "if (":
                return
        old = self.source(children[0])
        self.add(*self.span(children[0]), old, f"!({old})", f"!({old})", constant)

    # ---- statements ----

    def statements(self, cursor, children):
        """Those of the children that stand where a statement does."""
        k = self.kinds
        if cursor.kind == k.COMPOUND_STMT:
            chosen = children
        elif cursor.kind == k.IF_STMT:
            chosen = children[1:]
        elif cursor.kind in (k.FOR_STMT, k.WHILE_STMT, k.CXX_FOR_RANGE_STMT):
            chosen = children[-1:]
        else:
            return []
        return [c for c in chosen if c.kind in (k.CALL_EXPR, k.BINARY_OPERATOR, k.UNARY_OPERATOR,
                                                k.COMPOUND_ASSIGNMENT_OPERATOR)]

    def left_out(self, cursor, constant):
        text, (start, end) = self.source(cursor), self.span(cursor)
        after = self.text[end:end + 1]
        if after == ";" and not re.match(r"TQ_[A-Z_]+\(", text) and "operator" not in text[:9]:
            self.add(start, end, text, "", "(void)0", constant)


def mutants_of(name, lines=None):
    return [m for m in Finder(name).mutants() if lines is None or m.line in lines]


# ---- all of them in one text ----

def instrumented(text, chosen):
    """The text with every mutant of chosen ([(number, mutant)]) in it. Lines stay where they are. What a
    mutant puts there stands between /*17<*/ and /*17>*/, for whoever reads a compiler's complaint."""
    places = collections.defaultdict(list)
    for number, mutant in chosen:
        places[mutant.start, mutant.end].append((number, mutant))
    order = sorted(places, key=lambda place: (place[0], -place[1]))
    result, _ = _piece(text, 0, len(text), order, 0, places)
    return result


def _piece(text, start, end, order, at, places):
    """(the text of start .. end with the places order[at:] that begin in it, the next place)."""
    made, here = [], start
    while at < len(order) and order[at][0] < end:
        place = order[at]
        if place[0] < here or place[1] > end:
            raise ValueError(f"places overlap: {text[place[0]:place[1]]}")
        made.append(text[here:place[0]])
        inner, at = _piece(text, *place, order, at + 1, places)
        for number, mutant in sorted(places[place], key=lambda each: each[1].text == "(void)0"):
            # A pointer may be a condition; what has a value may be a statement.
            condition = mutant.text[:2] == "!(" or mutant.text == "true" and mutant.old != "false"
            type_of = "(void)" if mutant.text == "(void)0" else "bool" if condition else ""
            old = f"{type_of}({inner})"
            inner = f"(tq_is({number}) ? (/*{number}<*/{mutant.text}/*{number}>*/) : {old})"
        made.append(inner)
        here = place[1]
    made.append(text[here:end])
    return "".join(made), at
