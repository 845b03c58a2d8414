"""The clock, with a fake time: what is counted, in which order, and what is waited for."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from benchmarks import clock
from benchmarks.systems import serve
from benchmarks.systems.work import Form
from experiments.support.common import environment


class FakeTime:
    """A clock that only the functions made by `takes` advance, and a log of their calls."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)

    def takes(self, seconds, name, value=None):
        """Return a function that takes `seconds`, or in turn one of several durations."""
        durations = itertools.cycle(seconds if isinstance(seconds, list) else [seconds])

        def run(*args):
            self.now += next(durations)
            self.log.append(name)
            return value

        return run


@pytest.fixture
def fake_time(monkeypatch):
    return FakeTime(monkeypatch)


def test_a_call_is_timed_until_its_own_result_is_ready(fake_time):
    dispatched, waited = object(), []

    def block(value):
        waited.append(value)
        fake_time.now += 5

    assert clock.time_call(fake_time.takes(1, "run", dispatched), block=block) == 6
    assert waited == [dispatched]


def test_the_default_waits_for_jax(fake_time, monkeypatch):
    class Late:
        def block_until_ready(self):
            fake_time.now += 3

    assert clock.time_call(lambda: Late()) == 3


def test_systems_are_interleaved(fake_time, monkeypatch):
    slept = []
    monkeypatch.setattr(clock.time, "sleep", slept.append)
    times = {
        name: iter(range(start, start + 3)) for name, start in (("a", 10), ("b", 20), ("c", 30))
    }
    runs = {
        name: lambda name=name: (fake_time.log.append(name), float(next(times[name])))[1]
        for name in times
    }
    seconds = clock.interleave(runs, 3, settle=0.5)
    assert fake_time.log == ["a", "b", "c"] * 3 and slept == [0.5] * 9
    assert seconds == {"a": [10, 11, 12], "b": [20, 21, 22], "c": [30, 31, 32]}
    assert clock.interleave({"a": lambda: 1.0}, 2) == {"a": [1.0, 1.0]} and slept == [0.5] * 9


class Jitted:
    """The part of a jitted function that the clock uses: lowering, compiling and running take time.

    The first lowering takes longest, as it does when numba compiles loops.
    """

    def __init__(self, fake_time, compile_seconds, run):
        self.lower = fake_time.takes([1000, *[0] * 9], "lower", self)
        self.compile = fake_time.takes(compile_seconds, "compile", self)
        self.run = run

    def __call__(self, *args):
        return self.run(*args)

    def memory_analysis(self):
        return type("Memory", (), {"temp_size_in_bytes": 77})


def test_compile_time_is_separate_and_programs_are_warmed_up_before_the_timing(
    fake_time, monkeypatch
):
    monkeypatch.setattr(jax, "clear_caches", lambda: fake_time.log.append("clear"))
    first = clock.compile_program(
        Jitted(fake_time, [100, 7, 9], fake_time.takes([50, 1, 2, 6], "a")), compiles=3
    )
    assert fake_time.log == ["lower", *["clear", "lower", "compile"] * 3]
    assert first.compile_seconds == 9  # the median
    second = clock.compile_program(Jitted(fake_time, 20, fake_time.takes([60, 4, 4, 4], "b")))
    fake_time.log.clear()
    timings = clock.time_interleaved({"a": first, "b": second}, repeats=3)
    assert fake_time.log == ["a", "b"] + ["a", "b"] * 3  # nothing compiles here
    assert timings["a"] == clock.Timing(
        9, seconds=2, least=1, lower=1.5, upper=4, most=6, repeats=3, temp_bytes=77
    )
    assert timings["b"] == clock.Timing(
        20, seconds=4, least=4, lower=4, upper=4, most=4, repeats=3, temp_bytes=77
    )


def test_spread_of_repeated_times():
    assert clock.spread([3.0, 1.0, 2.0, 9.0]) == clock.Spread(2.5, 1.0, 1.75, 4.5, 9.0, 4)
    assert clock.spread([2.0]) == clock.Spread(2.0, 2.0, 2.0, 2.0, 2.0, 1)


def test_measure_runs_real_programs():
    timings = clock.measure(
        {"sum": (jnp.sum, (jnp.ones(8),)), "jitted": (jax.jit(lambda x: x + 1), (1.0,))}, repeats=2
    )
    assert list(timings) == ["sum", "jitted"]
    assert all(
        t.least <= t.lower <= t.seconds <= t.upper <= t.most and t.compile_seconds > 0
        for t in timings.values()
    )


def test_the_environment_names_the_machine():
    seen = environment.environment()
    assert seen["cpus"] >= seen["usable_cpus"] >= 1 and seen["cpu"] and seen["device"] == "cpu"
    assert (
        seen["versions"]["jax"] == jax.__version__
        and seen["date"][:2] == "20"
        and seen["python"].startswith("3.")
    )
    assert seen["vectors"] is None or seen["vectors"] in environment.VECTORS.values()
    assert "load" in seen and "torch" not in [k for k, v in seen["versions"].items() if v is None]


def test_the_widest_vectors_are_named(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(
        environment, "Path", lambda name: cpuinfo if name == "/proc/cpuinfo" else None
    )
    for flags, vectors in (
        ("sse2 avx2 avx avx512f", "AVX-512"),
        ("sse2 avx avx2", "AVX2"),
        ("fpu", None),
    ):
        cpuinfo.write_text(
            "model name\t: A cpu: of sorts\nvmx flags\t: avx512f\n"
            f"flags\t\t: {flags}\n\nflags\t\t: avx512f\n"
        )
        seen = environment.environment()
        assert seen["vectors"] == vectors and seen["cpu"] == "A cpu: of sorts"
    cpuinfo.unlink()
    assert environment.environment()["vectors"] is None and environment.environment()["cpu"]


def form(fake_time, begin=1000, epoch=2, wait=3):
    return Form(
        fake_time.takes(begin, "begin", "state"),
        fake_time.takes(epoch, "epoch", ("state", [0.5, 0.25])),
        fake_time.takes(40, "compile", (40.0, 8)),
        fake_time.takes(wait, "block"),
    )


def test_a_worker_times_the_epoch_and_the_wait_but_not_the_initial_state(fake_time):
    assert serve.epoch(form(fake_time), warm=0) == 5 and fake_time.log == [
        "begin",
        "epoch",
        "block",
    ]
    fake_time.log.clear()  # two untimed epochs of 5 seconds fill 7 seconds
    assert (
        serve.epoch(form(fake_time), warm=7) == 5
        and fake_time.log == ["begin", "epoch", "block"] * 3
    )


def test_a_worker_compiles_all_forms_before_it_runs_any(fake_time):
    prepared = serve.prepare({"x": form(fake_time), "y": form(fake_time)}, compiles=2)
    assert fake_time.log[:4] == ["compile"] * 4 and "compile" not in fake_time.log[4:]
    assert prepared["x"] == prepared["y"]
    assert prepared["x"] == {
        "compile_seconds": 40.0,
        "temp_bytes": 8,
        "losses": [0.5, 0.25] * 4,
        "seconds": 5,
    }
