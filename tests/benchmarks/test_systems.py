"""All systems of benchmarks/peers.py compute the same losses from the same weights."""

import functools
import importlib
import json
import os

import jax
import numpy as np
import pytest

from benchmarks import peers
from benchmarks.support import peer_rows
from benchmarks.support.worker import Worker, WorkerError
from benchmarks.systems import serve, textbook
from benchmarks.systems.registry import ON_CORES, OURS, SYSTEMS, TEXTBOOK, TORCH, System, is_ours
from benchmarks.systems.work import Case, Form, draw_data, draw_weights

CASES = (
    Case("floats", 3, 4, 2, 3, 5),
    Case("symbols", 3, 4, 2, 6, 5, symbols=True),
    Case("one chunk", 1, 6, 2, 3, 5),
)
# Keras has its learning rate in float32 and epsilon elsewhere; PyTorch's clipping adds 1e-6.
WITHIN = {"keras": 2e-6, "PyTorch": 1e-6}
EPOCHS = 3


def losses(make_forms, case, weights=None, dtype=np.float64, only=None):
    """Return the losses of EPOCHS epochs by form; from the second on the carry is not zero."""
    weights = draw_weights(case, dtype) if weights is None else weights
    seen = {}
    for name, form in make_forms(case, weights, draw_data(case, dtype)).items():
        if only not in (None, name):
            continue
        form.block(form.epoch(form.begin()))  # the next one must begin at the same state
        state, seen[name] = form.begin(), []
        for _ in range(EPOCHS):
            state, new = form.epoch(state)
            form.block((state, new))
            seen[name] += [float(loss) for loss in new]
    return seen


def make_forms_of(name):
    if absent := serve.missing(SYSTEMS[name]):
        pytest.skip(f"{absent} is not installed: {serve.REMEDY}")
    module, _, function = SYSTEMS[name].path.partition(":")
    return getattr(importlib.import_module(module), function)


@functools.cache
def reference(case, dtype=np.float64):
    return per_chunk(case, dtype=dtype)


def per_chunk(case, weights=None, dtype=np.float64):
    """Return the losses of the textbook's documented form."""
    return losses(textbook.forms, case, weights, dtype, "per chunk")["per chunk"]


def cases_of(name):
    """One chunk is full BPTT for ours. Systems that share jax_forms.py share its symbols."""
    if SYSTEMS[name].cores:
        return CASES[1:2]  # the floats have a process of their own, see below
    if is_ours(name):
        return CASES
    return CASES[:2] if name in ("haiku", "keras", TEXTBOOK, TORCH) else CASES[:1]


ALL = [(name, case) for name in SYSTEMS for case in cases_of(name)]
ESSENTIAL = [(OURS, CASES[1])]


@pytest.mark.filterwarnings("default")  # deprecations in other libraries
@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(*one, marks=() if one in ESSENTIAL else pytest.mark.exhaustive) for one in ALL],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_same_weights_give_the_same_losses_in_every_form(name, case):
    seen = losses(make_forms_of(name), case)
    assert "per chunk" in seen and (not is_ours(name) or "one program" in seen)
    for form, got in seen.items():
        np.testing.assert_allclose(
            got, reference(case), rtol=WITHIN.get(name, 1e-12), err_msg=f"{form} {case}"
        )


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.cores])
def test_on_all_cores_the_losses_are_those_of_one(name):
    """In its own process with a device per core, whose number divides the batch."""
    if absent := serve.missing(SYSTEMS[name]):
        pytest.skip(f"{absent} is not installed: {serve.REMEDY}")
    worker, case = Worker(name), Case("floats", 4, 6, 4 * 3 * 5 * 7, 3, 5)
    expected = reference(case, np.float32)
    answers = name == f"{TEXTBOOK} {ON_CORES}"
    try:
        assert worker.ready() and worker.missing is None
        if answers:  # after an error, too
            with pytest.raises(WorkerError, match="textbook scan on all cores: KeyError"):
                worker.epoch("per chunk", warm=0)  # before any prepare
        forms = worker.prepare(case._asdict(), 1)
        assert forms.keys() == {"per chunk", "one program"}
        for seen in forms.values():
            assert peer_rows.difference(seen["losses"], expected[:8]) < 1e-5
            assert seen["compile_seconds"] > 0
        assert worker.epoch("one program", warm=0.01) > 0
        cores = len(os.sched_getaffinity(0))
        assert cores == 1 or worker.prepare(case._replace(B=1)._asdict(), 1) == {}
    finally:
        worker.close()
    with pytest.raises((WorkerError, ValueError)):
        worker.epoch("per chunk", warm=0)


@pytest.mark.exhaustive
def test_wrong_work_is_refused():
    case, right = CASES[0], reference(CASES[0])
    weights, data = draw_weights(case, np.float64), draw_data(case, np.float64)
    H = case.H
    swapped = weights._replace(
        w_h=weights.w_h[:, [*range(H, 2 * H), *range(H), *range(2 * H, 4 * H)]]
    )
    wrong = per_chunk(case, swapped)
    assert peer_rows.difference(wrong, right) > 10 * peer_rows.TOLERANCE
    chunks = case._replace(N=1)  # one chunk per epoch: the carry of the last is lost
    form = textbook.forms(chunks, weights, data)["per chunk"]
    (params, opt_state, zeros), first = form.epoch(form.begin())
    assert peer_rows.difference([float(first[0])], right[:1]) < 1e-5
    rest = type(data)(*(a[1:2] for a in data))
    form = textbook.forms(chunks, weights, rest)["per chunk"]
    second = form.epoch((params, opt_state, jax.tree.map(np.zeros_like, zeros)))[1]
    assert peer_rows.difference([float(second[0])], right[1:2]) > 10 * peer_rows.TOLERANCE
    assert peer_rows.difference([float("nan")], [1.0]) == float("inf")


@pytest.mark.exhaustive
def test_float32_is_well_within_the_tolerance():
    for case in CASES[:2]:
        got = reference(case, np.float32)
        assert peer_rows.difference(got, reference(case)) < 0.1 * peer_rows.TOLERANCE


def test_a_system_that_is_not_installed_is_reported(monkeypatch):
    replies = []
    serve.serve(
        System("benchmarks.systems.peer_haiku:forms", ("no_such_package",)), [], replies.append
    )
    assert replies == [{"missing": "no_such_package", "remedy": serve.REMEDY}]

    class Absent:
        missing = {"missing": "haiku", "remedy": serve.REMEDY}

        def __init__(self, name):
            self.name = name

        def ready(self):
            return False

        def close(self):
            replies.append(self.name)

    monkeypatch.setattr(peers, "Worker", Absent)
    monkeypatch.setattr(peers, "CASES", ())
    given = dict.fromkeys(("cases", "repeats", "compiles", "before"), None) | {"quick": False}
    flags = type("Flags", (), {**given, "systems": ["haiku"]})
    summary = peers.measure(flags)
    wanted = {
        "case": None,
        "system": "haiku",
        "missing": "haiku",
        "remedy": serve.REMEDY,
    }
    assert (
        wanted in summary["rows"]
        and summary["targets"] == []
        and set(replies[1:]) == {"haiku", TEXTBOOK}
    )


def fake_forms(case, weights, data):
    """Make the form of a system that counts its updates; its loss is the case's H."""
    form = Form(
        lambda: 0,
        lambda state: (state + case.N, [case.H] * case.N),
        lambda: (2.0, 8),
        lambda value: None,
    )
    return {"per chunk": form}


def test_a_system_answers_after_an_error():
    """In this process, with the lines of JSON of a worker process."""
    replies, case = [], CASES[1]._asdict()
    commands = [
        {"do": "epoch", "form": "per chunk", "warm": 0},  # before any prepare
        {"do": "prepare", "case": case, "compiles": 3},
        {"do": "epoch", "form": "per chunk", "warm": 0.01},
        {"do": "prepare", "case": case | {"unknown": 1}, "compiles": 1},
    ]
    serve.serve(System(f"{__name__}:fake_forms"), map(json.dumps, commands), replies.append)
    assert (
        replies[0] == {"ready": True}
        and replies[1] == {"error": "KeyError: 'per chunk'"}
        and "TypeError" in replies[4]["error"]
    )
    prepared = replies[2]["forms"]["per chunk"]
    assert prepared.pop("seconds") > 0 and replies[3]["seconds"] > 0 and json.dumps(replies)
    assert prepared == {"compile_seconds": 2.0, "temp_bytes": 8, "losses": [CASES[1].H] * 8}
