"""Tests of the flag --unroll."""

import json
import typing

import jax
import numpy as np
import pytest
import tyro

import tbptt
from experiments import predict, train
from experiments.support.common import program
from experiments.support.common.unroll_choice import UnrollName, choose_unroll, print_unroll

FUNCTIONS = {
    "scan": tbptt.unroll,
    "plain": tbptt.plain_unroll,
    "parallel": tbptt.parallel_unroll,
    "newton": tbptt.newton_unroll,
}


def test_each_name_selects_its_function():
    assert {name: choose_unroll(name) for name in FUNCTIONS} == FUNCTIONS
    assert {*FUNCTIONS, "numba"} == set(typing.get_args(UnrollName))
    pytest.importorskip("numba")
    assert choose_unroll("numba") is tbptt.backends.numba_cpu.unroll


def test_numba_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ImportError,
        match=r"--unroll numba needs .*pip install 'tbptt\[cpu\]', or use --unroll scan",
    ):
        choose_unroll("numba")


def test_the_function_is_printed_on_stderr(capsys):
    print_unroll("newton")
    assert (
        "Running cells by tbptt.newton_unroll (--unroll newton); compiling"
        in capsys.readouterr().err
    )


def test_experiments_without_a_trained_network_have_no_flag():
    from experiments import adding, lyapunov, window_tradeoff

    assert adding.Config().unroll == window_tradeoff.Config().unroll == "scan"
    assert issubclass(adding.Config, program.Trained) and not hasattr(lyapunov.Config(), "unroll")


@pytest.mark.exhaustive
def test_a_run_uses_its_unroll_function_in_training_and_prediction(tmp_path, monkeypatch, capsys):
    used = []

    def unroll(*args, **options):
        used.append(True)
        return tbptt.plain_unroll(*args, **options)

    for program_module in (train, predict):
        monkeypatch.setattr(program_module, "choose_unroll", lambda name: unroll)
    monkeypatch.setattr(
        "experiments.support.train.finish.write_report", lambda folder: folder / "report.html"
    )
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    np.save("waves.npy", np.sin(np.arange(400) / 5)[:, None])
    flags = "--data waves.npy --target 0 --cell elman --hidden 2 --batch 2 --k1 8 --epochs 1 "
    flags += "--out run --unroll newton"
    with jax.enable_x64(False):
        assert train.run(lambda **more: tyro.cli(train.Config, args=flags.split(), **more)) == 0
        assert used and json.loads((tmp_path / "run/config.json").read_text())["unroll"] == "newton"
        used.clear()
        config = predict.Config(
            tmp_path / "run", tmp_path / "waves.npy", tmp_path / "p.npy", block=16
        )
        predict.main(config)
        assert used and capsys.readouterr().err.count("(--unroll newton)") == 2
        argv = ["--resume", "run", "--unroll", "scan"]
        assert train.run(lambda **more: tyro.cli(train.Config, args=argv, **more)) == 1
    assert (
        "--unroll is newton in the run run, but scan on the command line" in capsys.readouterr().err
    )
