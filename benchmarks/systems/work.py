"""The work that every system does, in numpy alone: the case, its data, its weights, and what a system must offer.

One LSTM layer and a linear readout; after each chunk of k steps the mean loss is differentiated through that chunk, the
gradient clipped to norm 1 and Adam takes a step; the carry is handed on as a constant. N chunks are an epoch. All systems
start from the same weights, drawn here in our layout and converted by each into its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LEARNING_RATE, EPSILON, CLIP = 1e-3, 1e-8, 1.0


class Case(NamedTuple):
    """N chunks of k steps, batch B, input D, hidden H; with `symbols` the inputs are integers, one-hot in each system."""

    name: str
    N: int
    k: int
    B: int
    D: int
    H: int
    symbols: bool = False

    @property
    def outputs(self) -> int:
        """Size of the readout: one logit a symbol, or one number."""
        return self.D if self.symbols else 1


class Weights(NamedTuple):
    """Gate blocks i, f, g, o side by side, as in `tbptt.LSTM`. w_x `[D, 4H]`, w_h `[H, 4H]`, b `[4H]`; readout
    w_y `[H, O]`, b_y `[O]`."""

    w_x: Any
    w_h: Any
    b: Any
    w_y: Any
    b_y: Any


class Data(NamedTuple):
    """inputs `[N, k, B, D]` floats or `[N, k, B]` symbols; targets `[N, k, B, 1]` or `[N, k, B]` symbols."""

    inputs: Any
    targets: Any


class Form(NamedTuple):
    """One way of running an epoch.

    begin:   () -> state        a fresh start, ready to be used; never timed
    epoch:   state -> (state, losses)   N updates; goes on from where the state stands; losses `[N]`, or a list of N
    compile: () -> (seconds, temp_bytes)   compiles, runs nothing; (None, None) where nothing is compiled
    block:   waits for all that an epoch returned
    """

    begin: Callable[[], Any]
    epoch: Callable[[Any], tuple[Any, Any]]
    compile: Callable[[], tuple[float | None, int | None]]
    block: Callable[[Any], Any]


# What a system's file offers: its forms by name, for a case, weights and data.
MakeForms = Callable[[Case, Weights, Data], dict[str, Form]]


def draw_weights(case: Case, dtype: Any = np.float32) -> Weights:
    """Draws weights: w_x by Glorot's rule and w_h orthogonal, gate by gate; forget bias 1; the same in every process."""
    random = np.random.default_rng(0)
    D, H, outputs = case.D, case.H, case.outputs
    limit = np.sqrt(6 / (D + H))
    w_h = [np.linalg.qr(random.normal(size=(H, H)))[0] for _ in range(4)]
    b = np.zeros(4 * H)
    b[H : 2 * H] = 1.0
    return Weights(
        *(
            np.ascontiguousarray(a, dtype)
            for a in (
                random.uniform(-limit, limit, (D, 4 * H)),
                np.concatenate(w_h, axis=1),
                b,
                random.normal(size=(H, outputs)) / np.sqrt(H),
                np.zeros(outputs),
            )
        )
    )


def draw_data(case: Case, dtype: Any = np.float32) -> Data:
    """Draws data with something to learn over time, so that wrong weights or gradients show in the losses.

    Floats: the target is a leaky sum of the inputs' mean. Symbols: each follows from the one before by a rule, or is drawn.
    """
    random = np.random.default_rng(1)
    T = case.N * case.k
    if case.symbols:
        drawn, told = random.integers(0, case.D, (T + 1, case.B)), random.random((T + 1, case.B)) < 0.8
        text = drawn.copy()
        for t in range(1, T + 1):
            text[t] = np.where(told[t], (5 * text[t - 1] + 3) % case.D, drawn[t])
        inputs, targets = text[:-1].astype(np.int32), text[1:].astype(np.int32)
    else:
        inputs = random.normal(size=(T, case.B, case.D))
        mean, targets = inputs.sum(-1, keepdims=True) / np.sqrt(case.D), np.zeros((T, case.B, 1))
        targets[0] = mean[0]
        for t in range(1, T):
            targets[t] = 0.8 * targets[t - 1] + mean[t]
        inputs, targets = inputs.astype(dtype), targets.astype(dtype)
    shape = (case.N, case.k)
    return Data(inputs.reshape(*shape, *inputs.shape[1:]), targets.reshape(*shape, *targets.shape[1:]))


def batch_major(data: Data) -> Data:
    """Moves the batch before time, `[N, B, k, ...]`, for libraries that want it so; done once, never timed."""
    return Data(*(np.ascontiguousarray(np.swapaxes(a, 1, 2)) for a in data))
