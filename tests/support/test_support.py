"""What the suite itself rests on: the bounded compile cache, the oldest versions, the mutants."""

import ast
import os
import pathlib

import pytest

from tests.mutation import run, sites
from tests.support import compile_cache, oldest, programs


def test_the_programs_used_longest_ago_are_deleted_until_the_rest_fits(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        path = tmp_path / "jax" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 10)
        os.utime(path, (1e9 - age, 1e9 - age))
    assert compile_cache.prune(tmp_path, 30) == 0
    assert compile_cache.prune(tmp_path, 20) == 1
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"new", "middle"}
    assert compile_cache.prune(tmp_path, 0) == 2


def test_the_cache_folder_depends_on_the_version_of_jax_and_is_stable():
    assert (
        compile_cache.folder("0.8.0")
        == compile_cache.folder("0.8.0")
        != compile_cache.folder("0.9.0")
    )
    assert compile_cache.folder("0.8.0").parent == compile_cache.FOLDER


def test_every_lower_bound_becomes_the_version():
    text = '[project]\ndependencies = ["jax>=0.8.0", "a-b[c]>=1.2,<2"]\n'
    text += '[project.optional-dependencies]\nx = ["jax>=0.8.0", "z>=3"]\n'
    assert oldest.constraints(text) == ["a-b==1.2", "jax==0.8.0", "z==3"]
    with pytest.raises(ValueError, match="'z' has no lower bound"):
        oldest.constraints(text.replace('"z>=3"', '"z"'))
    with pytest.raises(ValueError, match=r"jax has two bounds, 0\.8\.0 and 0\.9\.0"):
        oldest.constraints(text.replace('["jax>=0.8.0", "z', '["jax>=0.9.0", "z'))
    assert any(
        line.startswith("jax==") for line in oldest.constraints(oldest.PYPROJECT.read_text())
    )


MODULE = '''"""1 + 1 in a docstring."""
import jax.numpy as jnp

LIMIT: float = 3.0


def f(x: int = 4, *, é=1):
    """Return é."""
    if not x <= 0:
        raise ValueError(f"{x + 1}" + "!")
    return jnp.where(x > 1, é * x, -x)
'''


def test_mutants_change_what_is_computed_and_nothing_else(tmp_path):
    (tmp_path / "m.py").write_text(MODULE)
    found = sites.of_file(tmp_path, tmp_path / "m.py")
    changes = {(m.line, m.old, m.new) for m in found}
    assert changes == {
        (4, "3.0", "(4.0)"),
        (9, "not x <= 0", "(x <= 0)"),
        (9, "x <= 0", "(x < 0)"),
        (9, "0", "(1)"),
        (11, "jnp.where(x > 1, é * x, -x)", "(jnp.where(x > 1, -x, é * x))"),
        (11, "x > 1", "(x >= 1)"),
        (11, "1", "(2)"),
        (11, "é * x", "(é + x)"),
        (11, "-x", "(x)"),
    }
    for mutant in found:
        assert ast.dump(ast.parse(mutant.apply(MODULE))) != ast.dump(ast.parse(MODULE))
    with pytest.raises(AssertionError, match="m.py:4 is no longer"):
        found[0].apply(MODULE.replace("3.0", "5.0"))


@pytest.mark.exhaustive
def test_the_sample_is_a_function_of_the_seed():
    root = pathlib.Path(__file__).parents[2]
    assert sites.draw(root, 10, 0) == sites.draw(root, 10, 0) != sites.draw(root, 10, 1)


def test_the_closest_test_files_come_first():
    mutant = sites.Mutant("tbptt/cells/lstm.py", 7, 0, 1, "a", "b")
    reach = {
        "tbptt/cells/lstm.py": {
            7: ["tests/a.py", "tests/b.py", "tests/cells/test_lstm.py"],
            0: ["tests/c.py"],
        }
    }
    cost = {"tests/a.py": 2.0, "tests/b.py": 1.0, "tests/cells/test_lstm.py": 9.0}
    assert run.closest_first(mutant, reach, cost) == [
        "tests/cells/test_lstm.py",
        "tests/b.py",
        "tests/a.py",
    ]
    elsewhere = sites.Mutant(
        "tbptt/cells/lstm.py", 1, 0, 1, "a", "b"
    )  # a line that runs on import: no test reached it
    assert run.closest_first(elsewhere, reach, cost) == ["tests/c.py"]


def test_what_workers_counted_is_added_up():
    one, two = programs.Counter(3, 1), programs.Counter(4, 0)
    one.by_test.update({"a": 3})
    two.add(one.dump())
    assert (two.compiled, two.loaded, two.by_test["a"]) == (7, 1, 3)
