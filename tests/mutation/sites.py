"""Enumerate the places where one small change makes a module compute something else."""

import ast
import dataclasses
import itertools
import pathlib
import random

# The modules that define the mathematics. Backends, data and diagnostics have references of their
# own.
MODULES = (
    "tbptt/windows.py",
    "tbptt/training.py",
    "tbptt/numerics.py",
    "tbptt/losses/sequence.py",
    "tbptt/unroll",
    "tbptt/estimators",
    "tbptt/cells",
    "tbptt/optim",
)

BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
}
BINARY |= {
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
COMPARE |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
# Functions of one signature that compute different things.
FUNCTIONS = {
    "maximum": "minimum",
    "minimum": "maximum",
    "max": "min",
    "min": "max",
    "any": "all",
    "all": "any",
    "sum": "max",
    "cos": "sin",
    "sin": "cos",
    "tanh": "sin",
    "sigmoid": "tanh",
    "exp": "cosh",
    "zeros": "ones",
    "ones": "zeros",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
    "cumsum": "cumprod",
    "square": "abs",
    "sqrt": "square",
    "isfinite": "isnan",
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One changed expression.

    file, line: where, relative to the root of the project; the line is the expression's first
    start, end: its offsets in the file, in characters
    old, new:   the expression before and after
    """

    file: str
    line: int
    start: int
    end: int
    old: str
    new: str

    def apply(self, text: str) -> str:
        """Return the text of the file with the expression replaced."""
        assert text[self.start : self.end] == self.old, (
            f"{self.file}:{self.line} is no longer {self.old!r}"
        )
        return text[: self.start] + self.new + text[self.end :]


def mutants(root: pathlib.Path) -> list[Mutant]:
    """Return every mutant of the modules, in the order of files and lines."""
    found = []
    for module in MODULES:
        path = root / module
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found += of_file(root, file)
    return found


def draw(root: pathlib.Path, number: int, seed: int) -> list[Mutant]:
    """Return a sample without replacement; the same for the same tree, number and seed."""
    found = mutants(root)
    return sorted(random.Random(seed).sample(found, number), key=lambda m: (m.file, m.start, m.new))


def of_file(root: pathlib.Path, file: pathlib.Path) -> list[Mutant]:
    """Return the mutants of one file; messages, annotations, docstrings and names are unchanged."""
    text = file.read_text()
    lines = text.splitlines(keepends=True)
    starts = list(itertools.accumulate(map(len, lines), initial=0))

    def offset(line: int, column: int) -> int:  # ast counts lines from 1 and columns in bytes
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    found = []
    for node in _expressions(ast.parse(text)):
        for changed in _changes(node):
            assert isinstance(node, ast.expr) and node.end_lineno and node.end_col_offset
            start, end = (
                offset(node.lineno, node.col_offset),
                offset(node.end_lineno, node.end_col_offset),
            )
            new = f"({ast.unparse(changed)})"
            found.append(
                Mutant(str(file.relative_to(root)), node.lineno, start, end, text[start:end], new)
            )
    return found


def _expressions(tree: ast.AST):
    """Yield the expressions that are computed: none of `raise`, annotations, f-strings, imports."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(
            child, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.arguments
        ):
            continue
        if isinstance(child, ast.AnnAssign):
            if child.value is not None:
                yield from _with_itself(child.value)
        elif isinstance(child, ast.FunctionDef | ast.ClassDef):
            for statement in child.body:
                yield from _expressions_of_statement(statement)
        else:
            yield from _with_itself(child)


def _expressions_of_statement(statement: ast.stmt):
    wrapper = ast.Module(body=[statement], type_ignores=[])
    yield from _expressions(wrapper)


def _with_itself(node: ast.AST):
    yield node
    yield from _expressions(node)


def _changes(node: ast.AST):
    """Yield changed copies of one expression."""
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY and not _is_text(node):
        yield ast.BinOp(node.left, BINARY[type(node.op)](), node.right)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARE:
        yield ast.Compare(node.left, [COMPARE[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Call):
        yield from _calls(node)


def _calls(node: ast.Call):
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if isinstance(node.func, ast.Attribute) and name in FUNCTIONS:
        yield ast.Call(
            ast.Attribute(node.func.value, FUNCTIONS[name], ast.Load()), node.args, node.keywords
        )
    elif name == "stop_gradient" and len(node.args) == 1:
        yield node.args[0]
    elif name == "where" and len(node.args) == 3:
        yield ast.Call(node.func, [node.args[0], node.args[2], node.args[1]], node.keywords)
    elif name in ("isinstance", "issubdtype"):
        yield ast.UnaryOp(ast.Not(), node)


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(n, ast.JoinedStr | ast.Constant) and not _is_number(n) for n in ast.walk(node)
    )


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)
