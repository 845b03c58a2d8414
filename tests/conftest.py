"""float64 for every test: identities are checked to rounding, not to tolerance."""

import atexit
import os
import shutil
import tempfile

# Most of the suite's time is spent compiling thousands of small programs. So LLVM works less hard on them, and what one
# worker has compiled the other one loads. Set before jax is imported; workers inherit it.
_FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if _FAST not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FAST}".strip()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="tbptt-tests-")
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_enable_x64", True)


@pytest.fixture
def key():
    return jax.random.key(0)


def pytest_addoption(parser):
    parser.addoption(
        "--one-of-each", action="store_true", help="of every test with parameters only the last set, often the richest one"
    )


def last_of_each(names: list[str]) -> set[int]:
    """Which tests are the last with their name up to the parameters."""
    return set({name.split("[")[0]: i for i, name in enumerate(names)}.values())


def pytest_collection_modifyitems(config, items):
    if config.getoption("--one-of-each"):
        kept = last_of_each([item.nodeid for item in items])
        config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i not in kept])
        items[:] = [item for i, item in enumerate(items) if i in kept]


_finished = 0


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    """Forgets compiled programs now and then: thousands of them would fill the memory of a worker."""
    global _finished
    _finished += 1
    if _finished % 50 == 0:
        jax.clear_caches()
