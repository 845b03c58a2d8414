"""Tests of errors in a run of experiments.train: their messages, and what is saved."""

import functools
import json
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tyro

import tbptt
from experiments import train
from experiments.support.train import out_of_memory
from experiments.support.train import setup as run_setup
from experiments.support.train.model import init_params, make_model
from experiments.support.train.task import Forecast
from tbptt.checkpoints import Checkpoints, finished
from tbptt.checkpoints import format as checkpoint_format
from tbptt.fit import loop
from tbptt.fit.stopping import Stop
from tests.support.train_run import CELL, SMALL, WAVES, float32_in, last, write_waves


@pytest.fixture(autouse=True)
def setting(tmp_path, monkeypatch):
    with float32_in(tmp_path, monkeypatch):
        write_waves()
        yield


def go(*flags, capsys=None):
    """Run the program; return its exit status, and with `capsys` also stdout and stderr."""
    words = [str(flag) for flag in flags]
    status = train.run(lambda **more: tyro.cli(train.Config, args=words, **more))
    return (status, *capsys.readouterr()) if capsys else status


@pytest.mark.exhaustive
def test_a_run_resumes_with_its_own_flags_only(capsys, tmp_path):
    status, out, _ = go(*WAVES, *SMALL, "--epochs", 1, "--out", "run", capsys=capsys)
    summary = last(out)
    assert status == 0 and {"test_rmse", "baseline", "time_steps_per_second", "checkpoint"} <= set(
        summary
    )
    assert (
        summary == json.loads((tmp_path / "run" / "summary.json").read_text())
        and summary["updates"] == 20
    )
    metrics = {
        path.name: json.loads((path / "metadata.json").read_text())["metric"]
        for path in finished(tmp_path / "run" / "checkpoints")
    }
    best = min(metrics, key=lambda name: metrics[name])
    assert len(metrics) == 2 and best == summary["checkpoint"].rpartition("/")[2]
    status, _, err = go(*WAVES, *SMALL, "--out", "run", capsys=capsys)
    assert status == 1 and "already contains a run. Resume it by --resume run" in err
    status, _, err = go("--resume", "run", "--lr", 0.5, capsys=capsys)
    assert status == 1 and "--lr is 0.003 in the run run, but 0.5 on the command line" in err
    status, _, err = go("--resume", "run", "--out", "other", capsys=capsys)
    assert status == 1 and "omit --out" in err
    np.save("waves.npy", np.load("waves.npy") + 1)
    status, _, err = go("--resume", "run", "--epochs", 2, capsys=capsys)
    # The data have changed.
    assert status == 1 and "is of another run: its config.task.mean is" in err
    np.save("waves.npy", np.load("waves.npy") - 1)
    with Checkpoints(tmp_path / "run" / "checkpoints", {}):
        status, _, err = go("--resume", "run", capsys=capsys)
        assert status == 1 and "is in use by another run: process" in err


def test_a_terminal_gets_no_json(capsys, monkeypatch):
    monkeypatch.setattr(train, "main", lambda config, stop: {"rmse": 1})
    assert go(*WAVES, capsys=capsys) == (0, '{"rmse": 1}\n', "")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert go(*WAVES, capsys=capsys) == (0, "", "")


@pytest.mark.exhaustive
def test_a_finished_run_can_be_trained_longer(capsys, tmp_path):
    assert go(*WAVES, *SMALL, "--epochs", 1, "--out", "run") == 0
    status, out, err = go("--resume", "run", "--epochs", 2, capsys=capsys)
    assert status == 0 and last(out)["updates"] == 40
    assert "update 20, 50 % of the run; --epochs 2, before --epochs 1: the learning rate" in err
    status, out, err = go("--resume", "run", "--minutes", 1e-5, capsys=capsys)
    # It has trained for longer than 0.6 ms already.
    assert status == 0 and last(out)["updates"] == 40
    status, out, err = go("--resume", "run", "--minutes", 0.03, capsys=capsys)
    assert status == 0 and last(out)["updates"] > 40
    assert "--minutes 0.03, before --minutes 1e-05" in err
    assert json.loads((tmp_path / "run/config.json").read_text())["epochs"] is None


def faulty_step(monkeypatch, act):
    """Call `act(number of the update)` before every update."""
    made, count = tbptt.make_train_step, iter(range(10**6))

    def make(estimator, optimizer):
        step = made(estimator, optimizer)

        def faulty(state, batch):
            act(next(count))
            return step(state, batch)

        return faulty

    monkeypatch.setattr(tbptt, "make_train_step", make)


def test_an_out_of_memory_error_names_settings_that_fit(monkeypatch, capsys, tmp_path):
    def act(update):
        if update == 5:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes."
            )

    faulty_step(monkeypatch, act)
    status, out, err = go(*WAVES, *SMALL, "--epochs", 1, "--out", "run", capsys=capsys)
    assert status == 1 and out == "" and "Traceback" not in err
    found = re.search(
        r"k2 = 8 and a batch of 4 needs about .* fit in .*: --k2 (\d+); or --batch (\d+)", err
    )
    model = make_model(Forecast(("0", "1"), "0", 1, (0, 0), (1, 1), 0, 1), CELL, 3)
    params = jax.eval_shape(functools.partial(init_params, jax.random.key(0), model))

    def needs(k2, B):
        batch = tbptt.Batch(*(np.zeros((k2, B, n), np.float32) for n in (2, 1)))
        return tbptt.memory_plan(model.cell, model.readout, params, batch).predicted_bytes

    k2, B = int(found[1]), int(found[2])
    assert needs(k2, 4) <= needs(8, 4) // 2 < needs(k2 + 1, 4) and needs(8, B) <= needs(
        8, 4
    ) // 2 < needs(8, B + 1)
    # The last update is saved.
    assert finished(tmp_path / "run/checkpoints")[-1].name == "step_000000005"
    other = jax.errors.JaxRuntimeError("INTERNAL: something else")
    assert out_of_memory.explained(other, None, None) is other


def test_the_advice_names_a_memory_budget_that_fits():
    model = make_model(Forecast(("0",), "0", 1, (0,), (1,), 0, 1), "lstm", 64)
    params = jax.eval_shape(functools.partial(init_params, jax.random.key(0), model))
    example = tbptt.Batch(jnp.zeros((1, 32, 1)), jnp.zeros((1, 32, 1)))
    text = out_of_memory.advice(model, params, example, 2000, 32)
    mebi = int(re.search(r"--memory (\d+)", text)[1])
    batch = tbptt.Batch(jnp.zeros((2000, 32, 1)), jnp.zeros((2000, 32, 1)))
    needed, planned = (
        tbptt.memory_plan(model.cell, model.readout, params, batch, remat=remat).predicted_bytes
        for remat in (None, tbptt.MemoryBudget(mebi << 20))
    )
    assert planned <= mebi << 20 <= needed // 2
    assert "Use a smaller --hidden" in out_of_memory.advice(
        model, params, example, 1, 1, available=1000
    )


def state_of(run):
    """Return the step of the newest checkpoint, and all leaves of its state as bytes, by name."""
    path = finished(run / "checkpoints")[-1]
    names = list(json.loads((path / "metadata.json").read_text())["leaves"])
    as_numpy = {f"leaf_{i}": ocp.RestoreArgs(restore_type=np.ndarray) for i in range(len(names))}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        leaves = reader.restore(path / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return path.name, {
        name: np.asarray(leaves[f"leaf_{i}"]).tobytes() for i, name in enumerate(names)
    }


def test_a_run_that_was_stopped_and_lost_its_data_resumes_bitwise_equal(
    monkeypatch, capfd, tmp_path
):
    assert go(*WAVES, *SMALL, "--epochs", 1, "--out", "whole") == 0
    kept, whole = (tmp_path / "waves.npy").read_bytes(), state_of(tmp_path / "whole")
    assert whole[0] == "step_000000020" and {
        ".params.cell.w_x",
        ".memory.inner.h",
        ".step",
        ".key",
    } <= set(whole[1])

    with monkeypatch.context() as patch:
        faulty_step(patch, lambda n: os.kill(os.getpid(), signal.SIGTERM) if n == 7 else None)
        status, out, err = go(*WAVES, *SMALL, "--epochs", 1, "--out", "run", capsys=capfd)
    assert status == 143 and last(out)["stopped"] == "SIGTERM" and last(out)["updates"] == 8
    assert (
        "Stopped by SIGTERM after update 8. To resume: python -m experiments.train --resume run"
        in err
    )
    with monkeypatch.context() as patch:
        faulty_step(patch, lambda n: (tmp_path / "waves.npy").unlink() if n == 0 else None)
        status, _, err = go("--resume", "run", capsys=capfd)
    assert "resuming after update 8" in err and "Traceback" not in err
    assert status == 1 and "waves.npy disappeared while it was read" in err
    at = int(finished(tmp_path / "run/checkpoints")[-1].name.removeprefix("step_"))
    assert at >= 9  # the checkpoint contains every update
    (tmp_path / "waves.npy").write_bytes(kept)
    status, _, err = go("--resume", "run", capsys=capfd)
    assert status == 0 and f"resuming after update {at}" in err
    assert (tmp_path / "run/predictions.csv").read_text() == (
        tmp_path / "whole/predictions.csv"
    ).read_text()
    assert state_of(tmp_path / "run") == whole


@pytest.mark.exhaustive
def test_a_full_disk_is_a_warning_during_training_and_an_error_at_the_end(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(loop, "RETRY_SECONDS", 0.0)
    real, full = checkpoint_format.write_digests, {"left": 2}

    def seal(folder):
        full["left"] -= 1
        if full["left"] >= 0:
            raise OSError(28, "No space left on device")
        real(folder)

    monkeypatch.setattr(checkpoint_format, "write_digests", seal)
    status, _, err = go(
        *WAVES, *SMALL, "--epochs", 1, "--valid-every", 4, "--out", "run", capsys=capsys
    )
    assert (
        status == 0
        and "No space left on device" in err
        and str(tmp_path / "run/checkpoints") in err
    )
    assert "Training continues; the checkpoint will be tried again" in err
    assert finished(tmp_path / "run/checkpoints")[-1].name == "step_000000020"
    full["left"] = 10**6
    status, out, err = go(*WAVES, *SMALL, "--epochs", 1, "--out", "other", capsys=capsys)
    assert status == 1 and out == "" and "cannot write the checkpoint of step 20" in err


def test_a_non_finite_update_is_skipped_and_reported_and_the_carry_is_reset(
    monkeypatch, capsys, tmp_path
):
    real = run_setup.training_stream

    def poisoned(*arguments):
        stream = real(*arguments)
        chunk = stream.chunk

        def bad(i):
            found = chunk(i)
            inputs = np.where(i == 7, np.nan, found.batch.inputs)
            return found._replace(batch=found.batch._replace(inputs=inputs.astype(np.float32)))

        stream.chunk = bad
        return stream

    monkeypatch.setattr(run_setup, "training_stream", poisoned)
    status, out, err = go(*WAVES, *SMALL, "--epochs", 1, "--out", "run", capsys=capsys)
    assert status == 0 and np.isfinite(last(out)["test_rmse"])
    assert "warning: update 8" in err and "is not finite" in err and "consider " in err
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert sum(row["non_finite"] for row in rows if row["kind"] == "train") == 1
    assert [row["what"] for row in rows if row["kind"] == "warning"] == ["non_finite"]


def test_ctrl_c_twice_ends_at_once(monkeypatch):
    ended, before = [], signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT and (stop.status, stop.name) == (130, "Ctrl-C")
        monkeypatch.setattr(os, "kill", lambda *arguments: ended.append(arguments))
        stop._catch(signal.SIGTERM, None)
    assert ended == [(os.getpid(), signal.SIGTERM)]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.exhaustive
def test_seeds_and_devices(capsys, tmp_path):
    status, out, _ = go(*WAVES, *SMALL, "--epochs", 1, "--seeds", 2, "--out", "run", capsys=capsys)
    assert status == 0 and last(out)["seed"] in (0, 1)
    status, out, err = go("--resume", "run", "--epochs", 2, capsys=capsys)
    assert status == 0 and last(out)["updates"] == 40
