"""Devices, processes and seeds change where and when values are computed, and nothing else.

The programs run in processes of their own (tests/support/parallel_runs.py), because virtual
devices must be requested before jax starts.
"""

import inspect
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import tbptt
from tbptt.distributed import mesh as mesh_module
from tbptt.distributed.mesh import batch_specs, check_divisible
from tests.support.parallel_runs import CASES, FEW, SPLITS, UPDATES, B

ROOT = Path(__file__).parents[2]
TIMEOUT = 600  # seconds, ten times the usual duration, for a busy machine
exhaustive = pytest.mark.exhaustive


def start(devices: int | None, *arguments: str) -> subprocess.Popen:
    """Start a program with virtual devices; with devices=None it splits the CPU itself."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}" if devices else ""
    # NPROC is the size of XLA's thread pool; eight devices that wait for each other would block a
    # pool with one thread per core.
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "NPROC": "16",
    }
    command = [sys.executable, "-m", "tests.support.parallel_runs", *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(*processes: subprocess.Popen) -> list[str]:
    """Wait for all processes; kill the rest if one fails or takes too long."""
    try:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, text in zip(processes, outputs, strict=True):
        assert process.returncode == 0, text[-3000:]
    return outputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parallel")


def found_by(folder, devices, program):
    try:
        ended(start(devices, program, str(folder)))
    except AssertionError as error:
        if "Termination timeout" not in str(error):
            raise
        # XLA aborts when virtual devices have not synchronised for 40 seconds, on a busy machine.
        ended(start(devices, program, str(folder)))
    return json.loads((folder / f"{program}.json").read_text())


@pytest.fixture(scope="module")
def small(folder):
    return found_by(folder, None, "two_devices")


@pytest.fixture(scope="module")
def one(folder):
    return found_by(folder, 8, "one_process")


@pytest.fixture(scope="module")
def two(one, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ended(*(start(2, "two_processes", str(folder), port, str(i)) for i in range(2)))
    return [json.loads((folder / f"two_processes-{i}.json").read_text()) for i in range(2)]


def assert_alive(losses, updates=UPDATES):
    """Check that losses vary: equality of constants would prove nothing."""
    assert (
        len(losses) == updates
        and np.isfinite(losses).all()
        and np.std(losses) > 1e-2 * abs(np.mean(losses))
    )


def test_two_devices_give_the_losses_of_one(small):
    assert small["split"] == [2, 2]
    assert_alive(small["alone"][0], FEW)
    np.testing.assert_allclose(small["devices"], small["alone"][0], rtol=1e-12)


@exhaustive
@pytest.mark.parametrize("name", [*CASES, "truncated, float32"])
def test_eight_devices_give_the_losses_of_one(one, name):
    losses = one["losses"][name]
    assert_alive(losses["one device"])
    np.testing.assert_allclose(
        losses["devices"], losses["one device"], rtol=1e-5 if "float32" in name else 1e-12
    )


@exhaustive
def test_two_processes_give_the_losses_of_one(one, two):
    assert [p["started"] for p in two] == [[0, 2], [1, 2]] and [p["own"] for p in two] == [
        [0, B // 2],
        [B // 2, B],
    ]
    for process in two:
        np.testing.assert_allclose(
            process["losses"], one["losses"]["truncated"]["one device"], rtol=1e-12
        )


@exhaustive
def test_a_run_resumes_on_other_devices(one, two):
    """Resume from 1 device on 8, then on two processes of 2, then on the same two, restarted."""
    want = one["losses"]["truncated"]["one device"]
    np.testing.assert_allclose(one["resumed"], want[: SPLITS[1]], rtol=1e-12)
    for process in two:
        np.testing.assert_allclose(process["resumed"], want[SPLITS[1] :], rtol=1e-12)


def count_all_reduces(found):
    """Return the number of all-reduces (outside loops, inside loops) of more than two numbers.

    Smaller ones are losses.
    """
    sizes = [(looped, size) for kind, looped, size in found if kind == "all-reduce" and size > 2]
    return sum(not looped for looped, _ in sizes), sum(looped for looped, _ in sizes)


@exhaustive
@pytest.mark.parametrize("name", CASES)
def test_only_gradients_are_communicated_between_devices(one, name):
    assert {kind for kind, _, _ in one["collectives"][name]} == {
        "all-reduce"
    }  # no batch row is gathered


@exhaustive
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("full")])
def test_gradients_are_summed_once_per_update(one, name):
    assert count_all_reduces(one["collectives"][name]) == (1, 0)


def test_overlapping_windows_sum_gradients_outside_loops(small):
    """Count three sums: two branches (full and short past) and the replay of the latter."""
    assert {kind for kind, _, _ in small["collectives"]} == {"all-reduce"}
    assert count_all_reduces(small["collectives"]) == (3, 0)


@exhaustive
def test_without_sharded_loss_xla_communicates_more(one):
    """Check the purpose of `sharded_loss`, and that the counts detect the difference."""
    kinds = {kind for kind, _, _ in one["without sharded_loss"]["full"]}
    assert "all-gather" in kinds
    assert (
        count_all_reduces(
            one["without sharded_loss"]["full, a cell without a derived backward pass"]
        )[1]
        > 0
    )


@exhaustive  # essential tier: test_seeds.py on one device
def test_vmapped_seeds_equal_separate_runs(one):
    together, alone = np.array(one["together"]), np.array(one["alone"])
    np.testing.assert_allclose(together[:2], alone[:2], rtol=1e-12)  # the third run diverged
    assert np.isfinite(together[:2]).all() and not np.isfinite(together[2, 1:]).any()
    assert not np.allclose(together[0], together[1], rtol=1e-3)


def test_the_batch_axis_is_found_by_scaling():
    """Check that an axis of equal length is not mistaken for the batch axis."""

    def make(batch_size):
        shape = jax.ShapeDtypeStruct
        return {
            name: shape(s, float)
            for name, s in {
                "params": (B, B),
                "carry": (batch_size, 3),
                "past": (7, batch_size, 2),
                "both": (2 * batch_size,),
                "count": (),
                "odd": (batch_size + 1,),
            }.items()
        }

    none, first, second = PartitionSpec(), PartitionSpec("batch"), PartitionSpec(None, "batch")
    want = {
        "params": none,
        "carry": first,
        "past": second,
        "both": first,
        "count": none,
        "odd": none,
    }
    assert batch_specs(make, B) == want


def test_errors_give_both_numbers_and_the_remedy():
    mesh = tbptt.distributed.batch_mesh(1)
    batch = tbptt.Batch(np.zeros((4, 3, 2)), np.zeros((4, 3, 1)))
    with pytest.raises(
        ValueError, match=r"devices must be an int between 1 and 1.*got devices=3.*split_cpu\(3\)"
    ):
        tbptt.distributed.batch_mesh(3)
    with pytest.raises(
        ValueError, match=r"batch\.targets must be \[T, B, \.\.\.\].*got shape \(4,\)"
    ):
        tbptt.distributed.put_batch(batch._replace(targets=np.zeros(4)), mesh)
    with pytest.raises(
        ValueError, match=r"one batch size.*'batch\.inputs': 3, 'batch\.targets': 2"
    ):
        tbptt.distributed.put_batch(batch._replace(targets=np.zeros((4, 2))), mesh)
    with pytest.raises(ValueError, match=r"missing: number, index"):
        tbptt.distributed.start_processes("127.0.0.1:1")
    with pytest.raises(ValueError, match=r"index=2, number=2.*Count from 0"):
        tbptt.distributed.start_processes("127.0.0.1:1", 2, 2)
    assert list(tbptt.distributed.local_rows(3, mesh)) == [0, 1, 2]


def test_split_cpu_after_jax_has_started_is_an_error(monkeypatch):
    with pytest.raises(RuntimeError, match="has started with 1, not 2. Call split_cpu before"):
        tbptt.distributed.split_cpu(2)
    assert tbptt.distributed.split_cpu(1) == 1  # already has that number
    for wrong in (0, True):
        with pytest.raises(
            ValueError, match=f"int >= 1, or None for one per core; got devices={wrong}"
        ):
            tbptt.distributed.split_cpu(wrong)
    monkeypatch.setattr(mesh_module, "usable_cores", lambda: 3)
    with pytest.raises(RuntimeError, match="has started with 1, not 3"):
        tbptt.distributed.split_cpu()  # one device per core


@exhaustive
def test_split_cpu_uses_every_core():
    program = "import tbptt, jax; print(tbptt.distributed.split_cpu(), jax.device_count())"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT
    )
    cores = str(len(os.sched_getaffinity(0)))
    assert run.stdout.split() == [cores, cores], run.stderr


@exhaustive
def test_many_updates_in_flight_do_not_deadlock():
    """Run 800 updates without reading a value, on as many devices as cores.

    Without the block in `make_sharded_step` they deadlocked in three of three runs; XLA aborts
    such a process after 40 seconds.
    """
    program = """
import tbptt; tbptt.distributed.split_cpu(2)
from benchmarks.systems import ours, work
case = work.Case("", 100, 50, 32, 32, 16)
form = ours.forms_on_cores(case, work.draw_weights(case), work.draw_data(case))["per chunk"]
for _ in range(8):
    form.block(form.epoch(form.begin()))
print("done")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert run.stdout == "done\n", run.stderr[-2000:]


def divisibility_error(batch_size, devices, use, fit):
    return (
        f"the batch size B must be a multiple of the number of devices; got B={batch_size} on "
        f"{devices} devices. Use B={use}, or devices={fit}"
    )


def test_batch_sizes_that_do_not_divide_are_rejected(small):
    assert small["rejected"] == [
        divisibility_error(3, 2, "2 or 4", 1),
        divisibility_error(1, 2, "2", 1),
    ]
    check = inspect.unwrap(check_divisible)
    for batch_size, devices, use, fit in ((12, 8, "8 or 16", 6), (4, 8, "8", 4), (0, 1, "1", 1)):
        with pytest.raises(ValueError) as caught:
            check(batch_size, SimpleNamespace(size=devices))
        assert str(caught.value) == divisibility_error(batch_size, devices, use, fit)
    check(16, SimpleNamespace(size=8))


@exhaustive
def test_batch_sizes_that_do_not_divide_are_rejected_on_eight_devices(one):
    assert one["rejected"] == [
        divisibility_error(12, 8, "8 or 16", 6),
        divisibility_error(4, 8, "8", 4),
    ]
