"""The shape of the code: public names, file sizes, docstrings, the depth of a call, the layers."""

import ast
import functools
import importlib
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import tbptt

ROOT = pathlib.Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION = 350, 60


@functools.cache
def modules(root: pathlib.Path) -> dict[str, ast.Module]:
    """Parse every module of the checked folders; return its tree by dotted name."""
    files = [
        f
        for top in ("tbptt", "experiments", "benchmarks")
        for f in sorted((root / top).rglob("*.py"))
    ]
    return {
        ".".join(f.relative_to(root).with_suffix("").parts): ast.parse(f.read_text(), str(f))
        for f in files
    }


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
        functions = [
            n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        bad += [
            f"{name}.{f.name} has {code_lines(f)} lines of code"
            for f in functions
            if name.startswith("tbptt.") and code_lines(f) > MAX_FUNCTION
        ]
    return bad


def uses_of_jax_config(root: pathlib.Path) -> list[str]:
    """Find uses of the user's global configuration, in any spelling, outside of `split_cpu`."""
    bad = []
    for name, tree in modules(root).items():
        functions = [
            n
            for n in tree.body
            if name == "tbptt.distributed.mesh" and getattr(n, "name", None) == "split_cpu"
        ]
        allowed = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree) if name.startswith("tbptt.") else ():
            if id(node) in allowed:
                continue
            attribute = isinstance(node, ast.Attribute) and ast.unparse(node).startswith(
                "jax.config"
            )
            plain = isinstance(node, ast.Import) and any(
                a.name.startswith("jax.config") for a in node.names
            )
            direct = isinstance(node, ast.ImportFrom) and (
                node.module == "jax"
                and any(a.name == "config" for a in node.names)
                or node.module == "jax.config"
            )
            bad += (
                [f"{name}:{node.lineno} touches jax.config"] if attribute or plain or direct else []
            )
    return sorted(set(bad))


def without_docstring(root: pathlib.Path) -> list[str]:
    """Find public functions and classes without a docstring; a protocol may have them."""
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
    if isinstance(node, ast.ClassDef) and any(
        "Protocol" in ast.unparse(base) for base in node.bases
    ):
        return not any(
            isinstance(n, ast.FunctionDef) and ast.get_docstring(n) for n in node.body
        )  # the call speaks
    return True


CHECKS = [too_long, uses_of_jax_config, without_docstring]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_code_keeps_its_rules(check):
    assert len(modules(ROOT)) > 20
    assert check(ROOT) == []


BAD = {
    "training.py": (
        '"""t"""\nimport jax\njax.config.update("jax_enable_x64", True)',
        "tbptt.training:3 touches jax.config",
    ),
    "cells/lstm.py": (
        '"""l"""\ndef f():\n    import tbptt.cells.gru',
        "tbptt.cells.lstm.f has no docstring",
    ),
    "losses/sequence.py": (
        '"""o"""\ndef _f():\n    """."""\n' + "    pass\n" * 60,
        "tbptt.losses.sequence._f has 61 lines",
    ),
    "cells/flax_interop.py": ('"""i"""\n' + "\n" * 350, "tbptt.cells.flax_interop has 351 lines"),
}


@pytest.mark.parametrize("file", BAD)
def test_a_broken_rule_is_found(file, tmp_path):
    text, wanted = BAD[file]
    path = tmp_path / "tbptt" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert any(line.startswith(wanted) for check in CHECKS for line in check(tmp_path))


def test_a_forbidden_import_breaks_a_contract(tmp_path):
    """import-linter on a copy of the library in which an estimator imports a cell."""
    for folder in ("tbptt", "experiments", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            copy = tmp_path / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(file.read_text())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    full = tmp_path / "tbptt/estimators/full.py"
    full.write_text(full.read_text() + "\nfrom tbptt.cells.lstm import LSTM\n")
    run = [
        sys.executable,
        "-c",
        "import sys; sys.path.insert(0, '.')\n"
        "import importlinter.cli as cli; cli.lint_imports_command()",
    ]
    found = subprocess.run([*run, "--no-cache"], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1 and "tbptt.estimators.full -> tbptt.cells.lstm" in found.stdout, (
        found.stdout + found.stderr
    )


def test_public_names():
    tree = ast.parse((ROOT / "tbptt/__init__.py").read_text())
    aliases = [a for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names]
    public = [a.asname or a.name for a in aliases if not (a.asname or a.name).startswith("_")]
    assert (
        tbptt.__all__ == sorted(public)
        and len(set(public)) == len(public)
        and 40 <= len(public) <= 48
    )
    assert all(hasattr(tbptt, name) for name in tbptt.__all__)
    packages = {p.parent.name for p in (ROOT / "tbptt").glob("*/__init__.py")}
    packages -= {"fit", "unroll"}  # these names are those of functions
    assert set(dir(tbptt)) == {*tbptt.__all__, *packages, "__version__"}
    assert all(
        getattr(tbptt, name) is importlib.import_module(f"tbptt.{name}") for name in packages
    )
    with pytest.raises(AttributeError, match=r"no attribute 'trainig'; see dir\(tbptt\)"):
        tbptt.trainig  # noqa: B018


def test_import_loads_nothing_slow(tmp_path):
    """flax.nnx takes two seconds and scipy.special one; not every program needs the subpackages.

    Arrays in memory need no polars either.
    """
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    slow = ["flax.nnx", "scipy.special", "numba", "chex", "rich", "orbax", "tbptt.diagnostics"]
    code = (
        "import sys, jax, flax.linen, optax; before = set(sys.modules); import tbptt\n"
        f"print([name for name in {slow} if name in sys.modules and name not in before])\n"
        f"import tbptt.data as d; path = {str(tmp_path / 'x.npy')!r}\n"
        "d.load_series(path); d.open_source(path); print({'polars', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["[]", "set()"], done.stdout + done.stderr


def test_frames_between_the_update_and_the_scan(monkeypatch):
    """Count the frames of the package between the update of a train step and `jax.lax.scan`."""
    cell, readout = tbptt.LSTM(2, 4), nn.Dense(1, param_dtype=float)
    batch = tbptt.Batch(np.ones((10, 3, 2)), np.ones((10, 3, 1)))
    estimator = tbptt.truncated_bptt(
        tbptt.sequence_loss(cell, readout, tbptt.squared_error), 10, 10
    )

    def begin(batch):
        params = tbptt.init_params(jax.random.key(0), cell, readout)
        return tbptt.init_state(estimator, optax.sgd(0.1), params, cell.initial_carry((3,)), batch)

    state = jax.eval_shape(begin, batch)
    stacks, scan = [], jax.lax.scan

    def counting(*args, **kwargs):
        names, frame = [], sys._getframe(1)
        while frame is not None and frame.f_code.co_name != "update":
            if f"{ROOT}/tbptt/" in frame.f_code.co_filename:
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        stacks.append(names)
        return scan(*args, **kwargs)

    monkeypatch.setattr(jax.lax, "scan", counting)
    jax.eval_shape(tbptt.make_train_step(estimator, optax.sgd(0.1)), state, batch)
    assert stacks and max(map(len, stacks)) <= 9, stacks


@pytest.mark.parametrize(
    "folder",
    sorted((ROOT / "experiments/support").glob("*/README.md")),
    ids=lambda p: p.parent.name,
)
def test_the_readme_of_a_folder_names_its_files(folder):
    named = set(re.findall(r"`(\w+\.py)`", folder.read_text()))
    files = {path.name for path in folder.parent.glob("*.py")} - {"__init__.py"}
    assert named == files
