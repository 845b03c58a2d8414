"""The clock itself, by a clock that the tests turn: what is counted, in which order, and what is waited for."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from benchmarks import clock
from benchmarks.systems import serve
from benchmarks.systems.work import Form


class Hands:
    """A clock that stands still until something advances it, and writes down what happened."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)

    def takes(self, seconds, name, value=None):
        """A function that takes so long, or as long as the next of several durations."""
        durations = itertools.cycle(seconds if isinstance(seconds, list) else [seconds])

        def run(*args):
            self.now += next(durations)
            self.log.append(name)
            return value

        return run


@pytest.fixture
def hands(monkeypatch):
    return Hands(monkeypatch)


def test_a_call_is_timed_until_its_own_value_is_there(hands):
    dispatched, waited = object(), []

    def block(value):
        waited.append(value)
        hands.now += 5

    assert clock.once(hands.takes(1, "run", dispatched), block=block) == 6
    assert waited == [dispatched]


def test_by_default_it_blocks_until_jax_is_ready(hands, monkeypatch):
    class Late:
        def block_until_ready(self):
            hands.now += 3

    assert clock.once(lambda: Late()) == 3


def test_systems_take_turns(hands, monkeypatch):
    slept = []
    monkeypatch.setattr(clock.time, "sleep", slept.append)
    times = {name: iter(range(start, start + 3)) for name, start in (("a", 10), ("b", 20), ("c", 30))}
    runs = {name: lambda name=name: (hands.log.append(name), float(next(times[name])))[1] for name in times}
    seconds = clock.take_turns(runs, 3, settle=0.5)
    assert hands.log == ["a", "b", "c"] * 3 and slept == [0.5] * 9
    assert seconds == {"a": [10, 11, 12], "b": [20, 21, 22], "c": [30, 31, 32]}
    assert clock.take_turns({"a": lambda: 1.0}, 2) == {"a": [1.0, 1.0]} and slept == [0.5] * 9


class Jitted:
    """What jax.jit returns, as far as the clock looks: lowering and compiling take time, and so does running.

    The first lowering takes longest: numba compiles loops, a library loads what it needs.
    """

    def __init__(self, hands, compile_seconds, run):
        self.lower = hands.takes([1000, *[0] * 9], "lower", self)
        self.compile = hands.takes(compile_seconds, "compile", self)
        self.run = run

    def __call__(self, *args):
        return self.run(*args)

    def memory_analysis(self):
        return type("Memory", (), {"temp_size_in_bytes": 77})


def test_compiling_is_apart_and_every_program_warms_up_before_any_is_timed(hands, monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: hands.log.append("clear"))
    first = clock.prepare(Jitted(hands, [100, 7, 9], hands.takes([50, 1, 2, 6], "a")), compiles=3)
    assert hands.log == ["lower", *["clear", "lower", "compile"] * 3]
    assert first.compile_seconds == 9  # the median, each from empty caches
    second = clock.prepare(Jitted(hands, 20, hands.takes([60, 4, 4, 4], "b")))
    hands.log.clear()
    timings = clock.race({"a": first, "b": second}, repeats=3)
    assert hands.log == ["a", "b"] + ["a", "b"] * 3  # nothing compiles here
    assert timings["a"] == clock.Timing(9, seconds=2, least=1, lower=1.5, upper=4, most=6, repeats=3, temp_bytes=77)
    assert timings["b"] == clock.Timing(20, seconds=4, least=4, lower=4, upper=4, most=4, repeats=3, temp_bytes=77)


def test_spread_is_of_what_was_seen():
    assert clock.spread([3.0, 1.0, 2.0, 9.0]) == clock.Spread(2.5, 1.0, 1.75, 4.5, 9.0, 4)
    assert clock.spread([2.0]) == clock.Spread(2.0, 2.0, 2.0, 2.0, 2.0, 1)


def test_measure_runs_real_programs():
    timings = clock.measure({"sum": (jnp.sum, (jnp.ones(8),)), "jitted": (jax.jit(lambda x: x + 1), (1.0,))}, repeats=2)
    assert list(timings) == ["sum", "jitted"]
    assert all(t.least <= t.lower <= t.seconds <= t.upper <= t.most and t.compile_seconds > 0 for t in timings.values())


def test_the_environment_says_where_it_ran():
    seen = clock.environment()
    assert seen["cores"] >= seen["cores_for_us"] >= 1 and seen["cpu"] and seen["device"] == "cpu"
    assert seen["versions"]["jax"] == jax.__version__ and seen["date"][:2] == "20" and seen["python"].startswith("3.")
    assert seen["vectors"] is None or seen["vectors"] in clock.VECTORS.values()
    assert "load_before" in seen and "torch" not in [k for k, v in seen["versions"].items() if v is None]


def test_the_widest_vectors_are_named(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(clock, "Path", lambda name: cpuinfo if name == "/proc/cpuinfo" else None)
    for flags, said in (("sse2 avx2 avx avx512f", "AVX-512"), ("sse2 avx avx2", "AVX2"), ("fpu", None)):
        cpuinfo.write_text(
            f"model name\t: A cpu: of sorts\nvmx flags\t: avx512f\nflags\t\t: {flags}\n\nflags\t\t: avx512f\n"
        )
        seen = clock.environment()
        assert seen["vectors"] == said and seen["cpu"] == "A cpu: of sorts"
    cpuinfo.unlink()
    assert clock.environment()["vectors"] is None and clock.environment()["cpu"]


def form(hands, begin=1000, epoch=2, wait=3):
    return Form(
        hands.takes(begin, "begin", "state"),
        hands.takes(epoch, "epoch", ("state", [0.5, 0.25])),
        hands.takes(40, "compile", (40.0, 8)),
        hands.takes(wait, "block"),
    )


def test_a_worker_times_the_epoch_and_its_wait_but_not_the_fresh_start(hands):
    assert serve.epoch(form(hands), warm=0) == 5 and hands.log == ["begin", "epoch", "block"]
    hands.log.clear()  # 7 seconds of epochs of 5: two, and then the one that counts
    assert serve.epoch(form(hands), warm=7) == 5 and hands.log == ["begin", "epoch", "block"] * 3


def test_a_worker_compiles_all_its_forms_before_any_runs(hands):
    prepared = serve.prepare({"x": form(hands), "y": form(hands)}, compiles=2)
    assert hands.log[:4] == ["compile"] * 4 and "compile" not in hands.log[4:]
    assert prepared["x"] == prepared["y"]
    assert prepared["x"] == {"compile_seconds": 40.0, "temp_bytes": 8, "losses": [0.5, 0.25] * 4, "seconds": 5}
