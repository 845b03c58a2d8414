"""The rooms and who may import whom: the checker walks the syntax trees, and one bad house shows that it can fail."""

import ast
import pathlib

import pytest

import tbptt

ROOT = pathlib.Path(__file__).parents[1]
LEVELS = {
    0: {"types", "windows", "norms", "checks", "affine_scan", "halves", "cores"},
    0.5: {"engine"},  # beneath unroll and kernels, its doors
    1: {
        "cells",
        "parallel_scan",
        "newton",
        "estimators",
        "clipping",
        "training",
        "checkpoints",
        "parallel",
        "data",
    },
    1.2: {"native"},  # loops over time for cells that it knows by name
    1.5: {"unroll", "kernels"},
    2: {"objectives", "diagnostics", "interop"},
    2.5: {"omega", "stochastic"},  # what objectives' loss functions are given: a term; modules that draw
}
LEVEL = {room: level for level, rooms in LEVELS.items() for room in rooms}
# The front door stands outside the house: it opens every room, and only level 3 comes in by it.
FRONT_DOOR, OUTSIDE = "__init__", {"experiments": 3, "benchmarks": 3}
# Arrows within a level are forbidden, but for these: types imports nothing, and windows count the steps of its Batch;
# checks ask whether arguments are what it says.
EXCEPTIONS = {("windows", "types"), ("checks", "types"), ("halves", "types")}
MAX_FILE, MAX_FUNCTION = 350, 60


def modules(root: pathlib.Path) -> dict[str, ast.Module]:
    """Every module under the three checked folders: dotted name -> tree; a package is named `package.__init__`."""
    files = [f for top in ("tbptt", *OUTSIDE) for f in sorted((root / top).rglob("*.py"))]
    return {".".join(f.relative_to(root).with_suffix("").parts): ast.parse(f.read_text(), str(f)) for f in files}


def imports(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """The modules of this house that one module imports, at the top or inside functions, relatively or not."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for dotted in names:  # `from a.b import c` is a.b.c if that is a module, else a.b
            candidates = [dotted, f"{dotted}.__init__", dotted.rpartition(".")[0], f"{dotted.rpartition('.')[0]}.__init__"]
            found |= {next(c for c in candidates if c in known)} if known & set(candidates) else set()
    return found - {name}


def room_of(name: str) -> str:
    top, *rest = name.split(".")
    return rest[0] if top == "tbptt" else top


def bad_arrows(root: pathlib.Path) -> list[str]:
    """Imports that do not point to a lower level or into the module's own room."""
    trees, bad = modules(root), []
    for name, tree in trees.items():
        here = room_of(name)
        if here == FRONT_DOOR:
            continue
        if here not in LEVEL | OUTSIDE:
            bad.append(f"{name}: the room {here!r} is not in design.md")
            continue
        for target in sorted(imports(name, tree, set(trees))):
            there = room_of(target)
            level = 2.5 if there == FRONT_DOOR else (LEVEL | OUTSIDE).get(there, 99)
            if there != here and (here, there) not in EXCEPTIONS and level >= (LEVEL | OUTSIDE)[here]:
                bad.append(f"{name} imports {target}")
    return bad


def circles(root: pathlib.Path) -> list[str]:
    """Modules from which imports lead back to themselves."""
    trees = modules(root)
    arrows = {name: imports(name, tree, set(trees)) for name, tree in trees.items()}
    reach = {name: set(targets) for name, targets in arrows.items()}
    for middle in reach:  # transitive closure
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    return [f"{name} imports itself through others" for name in reach if name in reach[name]]


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, the docstring not counted."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def too_long(root: pathlib.Path) -> list[str]:
    bad = []
    for name, tree in modules(root).items():
        size = len((root / (name.replace(".", "/") + ".py")).read_text().splitlines())
        bad += [f"{name} has {size} lines"] if size > MAX_FILE else []
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        bad += [
            f"{name}.{f.name} has {code_lines(f)} lines of code"
            for f in functions
            if name.startswith("tbptt.") and code_lines(f) > MAX_FUNCTION
        ]
    return bad


def uses_of_jax_config(root: pathlib.Path) -> list[str]:
    """A library that sets (or reads) the user's global configuration, spelt in any of its ways, unless it is asked to."""
    bad = []
    for name, tree in modules(root).items():
        asked = [n for n in tree.body if name == "tbptt.parallel.mesh" and getattr(n, "name", None) == "split_cpu"]
        allowed = {id(node) for function in asked for node in ast.walk(function)}
        for node in ast.walk(tree) if name.startswith("tbptt.") else ():
            if id(node) in allowed:
                continue
            attribute = isinstance(node, ast.Attribute) and ast.unparse(node).startswith("jax.config")
            plain = isinstance(node, ast.Import) and any(a.name.startswith("jax.config") for a in node.names)
            direct = isinstance(node, ast.ImportFrom) and (
                node.module == "jax" and any(a.name == "config" for a in node.names) or node.module == "jax.config"
            )
            bad += [f"{name}:{node.lineno} touches jax.config"] if attribute or plain or direct else []
    return sorted(set(bad))


def without_docstring(root: pathlib.Path) -> list[str]:
    """Public functions, classes and methods of the library that say nothing; properties and protocols' `...` may."""
    bad = []
    for name, tree in modules(root).items():
        if not name.startswith("tbptt."):
            continue
        bad += [] if ast.get_docstring(tree) else [f"{name} has no docstring"]
        bad += [f"{name}.{n.name} has no docstring" for n in tree.body if _is_silent(n)]
    return bad


def _is_silent(node: ast.AST) -> bool:
    public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    if not public or ast.get_docstring(node) is not None:
        return False
    if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases):
        return not any(isinstance(n, ast.FunctionDef) and ast.get_docstring(n) for n in node.body)  # the call speaks
    return True


CHECKS = [bad_arrows, circles, too_long, uses_of_jax_config, without_docstring]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_in_order(check):
    assert len(modules(ROOT)) > 20  # it found the house
    assert check(ROOT) == []


def test_front_door_is_sorted_and_complete():
    tree = ast.parse((ROOT / "tbptt/__init__.py").read_text())
    aliases = [a for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names]
    public = [a.asname or a.name for a in aliases if not (a.asname or a.name).startswith("_")]
    assert tbptt.__all__ == sorted(public) and len(set(public)) == len(public)
    assert all(hasattr(tbptt, name) for name in tbptt.__all__)


BAD_HOUSE = {
    "types.py": ('"""t"""\nimport tbptt.windows\nfrom tbptt.cells.gru import GRU', "tbptt.types imports tbptt.windows"),
    "windows.py": ('"""w"""\nfrom tbptt import unroll', "tbptt.windows imports tbptt.unroll"),
    "unroll.py": ('"""u"""\nfrom . import objectives', "tbptt.unroll imports tbptt.objectives"),
    "training.py": (
        '"""t"""\nimport jax\njax.config.update("jax_enable_x64", True)',
        "tbptt.training:3 touches jax.config",
    ),
    "cells/__init__.py": ('"""c"""\nfrom tbptt.cells.gru import GRU as GRU', "tbptt.types imports tbptt.cells.gru"),
    "cells/gru.py": ('"""g"""\nfrom .lstm import f\nclass GRU: ...', "tbptt.cells.gru imports itself"),
    "cells/lstm.py": ('"""l"""\ndef f():\n    import tbptt.cells.gru', "tbptt.cells.lstm.f has no docstring"),
    "estimators/full.py": ('"""f"""\nfrom tbptt import Elman', "tbptt.estimators.full imports tbptt.__init__"),
    "estimators/rtrl.py": ('"""r"""\nfrom ..cells import GRU', "tbptt.estimators.rtrl imports tbptt.cells.__init__"),
    "objectives.py": ('"""o"""\ndef _f():\n    """."""\n' + "    pass\n" * 60, "tbptt.objectives._f has 61 lines of code"),
    "interop.py": ('"""i"""\n' + "\n" * 350, "tbptt.interop has 351 lines"),
    "helpers.py": ("", "tbptt.helpers: the room 'helpers' is not in design.md"),
    "__init__.py": ('"""Front."""\nfrom tbptt.cells import GRU as GRU', None),
    "diagnostics/lag.py": ('"""d"""\nfrom tbptt.unroll import unroll', None),
    "data/streams.py": ('"""d"""\nfrom tbptt.types import Batch\nfrom . import tasks', None),
    "data/tasks.py": ('"""d"""', None),
}


@pytest.mark.parametrize("file", BAD_HOUSE)
def test_a_bad_house_is_seen(file, tmp_path):
    for name, (text, _) in BAD_HOUSE.items():
        path = tmp_path / "tbptt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = [line for check in CHECKS for line in check(tmp_path)]
    wanted = BAD_HOUSE[file][1]
    if wanted is not None:
        assert any(line.startswith(wanted) for line in found), found
    else:  # what is allowed is not accused
        name = "tbptt." + file.removesuffix(".py").replace("/", ".")
        assert not [line for line in found if line.startswith(name)], found
