"""The work that every system does, in numpy: sizes, data, weights, and the interface.

One LSTM layer and a linear readout. After each chunk of k steps the mean loss is differentiated
through that chunk, the gradient is clipped to norm 1, Adam takes a step, and the carry enters the
next chunk as a constant. N chunks are an epoch. All systems start from the same weights, drawn
here in our layout and converted by each into its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LEARNING_RATE, EPSILON, CLIP = 1e-3, 1e-8, 1.0


class Case(NamedTuple):
    """Sizes: N chunks of k steps, batch B, input D, hidden H.

    With `symbols` the inputs are integers, which each system turns into one-hot vectors.
    """

    name: str
    N: int
    k: int
    B: int
    D: int
    H: int
    symbols: bool = False

    @property
    def outputs(self) -> int:
        """The size of the readout: one logit per symbol, or one number."""
        return self.D if self.symbols else 1


class Weights(NamedTuple):
    """Weights of the layer, gate blocks i, f, g, o as in `tbptt.LSTM`, and of the readout.

    w_x, w_h, b: `[D, 4H]`, `[H, 4H]`, `[4H]`
    w_y, b_y:    `[H, O]`, `[O]`
    """

    w_x: Any
    w_h: Any
    b: Any
    w_y: Any
    b_y: Any


class Data(NamedTuple):
    """Inputs `[N, k, B, D]` and targets `[N, k, B, 1]`, or symbols `[N, k, B]`."""

    inputs: Any
    targets: Any


class Form(NamedTuple):
    """One way of running an epoch.

    begin:   `() -> state`, the state before the first update; not timed
    epoch:   `state -> (state, losses)`, N updates from that state; losses `[N]`, or a list of N
    compile: `() -> (seconds, temp_bytes)`, without running; (None, None) if nothing is compiled
    block:   waits for everything that an epoch returned
    """

    begin: Callable[[], Any]
    epoch: Callable[[Any], tuple[Any, Any]]
    compile: Callable[[], tuple[float | None, int | None]]
    block: Callable[[Any], Any]


# The function of a system's file: its forms by name, for sizes, weights and data.
MakeForms = Callable[[Case, Weights, Data], dict[str, Form]]


def draw_weights(case: Case, dtype: Any = np.float32) -> Weights:
    """Draw the weights: w_x by Glorot's rule, w_h orthogonal per gate, forget bias 1."""
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
    """Draw data with a dependence over time, so that wrong weights or gradients change the losses.

    Floats: the target is a leaky sum of the inputs' mean. Symbols: each follows from the previous
    one by a rule with probability 0.8, and is drawn otherwise.
    """
    random = np.random.default_rng(1)
    T = case.N * case.k
    if case.symbols:
        drawn = random.integers(0, case.D, (T + 1, case.B))
        by_rule = random.random((T + 1, case.B)) < 0.8
        text = drawn.copy()
        for t in range(1, T + 1):
            text[t] = np.where(by_rule[t], (5 * text[t - 1] + 3) % case.D, drawn[t])
        inputs, targets = text[:-1].astype(np.int32), text[1:].astype(np.int32)
    else:
        inputs = random.normal(size=(T, case.B, case.D))
        mean = inputs.sum(-1, keepdims=True) / np.sqrt(case.D)
        targets = np.zeros((T, case.B, 1))
        targets[0] = mean[0]
        for t in range(1, T):
            targets[t] = 0.8 * targets[t - 1] + mean[t]
        inputs, targets = inputs.astype(dtype), targets.astype(dtype)
    shape = (case.N, case.k)
    return Data(*(a.reshape(*shape, *a.shape[1:]) for a in (inputs, targets)))


def batch_major(data: Data) -> Data:
    """Move the batch axis before time, `[N, B, k, ...]`, for batch-major libraries; not timed."""
    return Data(*(np.ascontiguousarray(np.swapaxes(a, 1, 2)) for a in data))
