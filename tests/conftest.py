"""Set up the tests: float64, a compile cache, quick compilation, two tiers, a program count."""

import gc
import importlib.metadata
import os

from tests.support import compile_cache

# Most of the suite's time is spent compiling thousands of small programs that run once. So LLVM
# works less hard on them, and on each as a whole: 32 parts, the default, take a quarter longer.
# Set before jax is imported; workers and the programs that tests start inherit it.
_FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
_JAXLIB = importlib.metadata.version("jaxlib")
if tuple(map(int, _JAXLIB.split(".")[:2])) < (0, 11):
    # Half the time to compile; newer versions of XLA refuse the flag. Without fused multiply-add a
    # program rounds alike however XLA groups its operations, so tests may compare two programs bit
    # by bit.
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_max_isa=AVX"]
if _FLAGS[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compile_cache.folder(_JAXLIB)))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.support import programs  # noqa: E402

jax.config.update("jax_enable_x64", True)
# Tracing allocates many long-lived objects; Python's defaults collect garbage far too often for it.
gc.freeze()
gc.set_threshold(200_000, 20, 100)

_counted = programs.Counter()
_CLEAR_AFTER = 600  # programs: of thousands, a worker would hold gigabytes and run out of mappings


@pytest.fixture
def key():
    return jax.random.key(0)


def pytest_addoption(parser):
    parser.addoption(
        "--programs",
        type=int,
        default=0,
        metavar="N",
        help="list the N tests that compile most programs",
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "exhaustive: second tier, `make test-all`; `make test` leaves it out"
    )
    _counted.start()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart(nodeid):
    _counted.test = nodeid


_cleared_at, _last_file = 0, ""


def pytest_runtest_setup(item):
    """Forget compiled programs between test files; within one, tests share them."""
    global _cleared_at, _last_file
    file, total = item.nodeid.split("::")[0], _counted.compiled + _counted.loaded
    if file != _last_file and total - _cleared_at > _CLEAR_AFTER:
        jax.clear_caches()
        _cleared_at = total
    _last_file = file


def pytest_sessionfinish(session):
    worker = getattr(session.config, "workeroutput", None)
    if worker is not None:
        worker["programs"] = _counted.dump()
    else:
        compile_cache.prune()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    _counted.add(getattr(node, "workeroutput", {}).get("programs", programs.Counter().dump()))


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line(
        f"{_counted.compiled} programs compiled, {_counted.loaded} loaded from the cache"
    )
    for test, number in _counted.by_test.most_common(config.getoption("--programs")):
        terminalreporter.write_line(f"{number:5d}  {test}")
