"""PyTorch: `nn.LSTM` and `nn.Linear`, the carry detached between chunks, `clip_grad_norm_` and Adam; as its tutorials.

PyTorch has two bias vectors where all others have one. `bias_hh` stays zero and is not trained, so that Adam's update of
the sum is that of the others. Its best forms beside the documented one: Adam with `fused=True`, and for a batch of one also
a single thread, as there is nothing to share out.
"""

from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks.systems.jax_forms import PER_CHUNK
from benchmarks.systems.work import CLIP, EPSILON, LEARNING_RATE, Case, Data, Form, Weights

FUSED, ONE_THREAD = "per chunk, fused Adam", "per chunk, fused Adam, one thread"
THREADS = torch.get_num_threads()


def forms(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Makes the forms. Nothing is compiled, and on a CPU nothing is left to wait for."""
    inputs, targets = (torch.from_numpy(a) for a in data)
    if case.symbols:
        inputs, targets = inputs.long(), targets.long()
    chunks = list(zip(inputs, targets, strict=True))

    def begin(fused: bool, threads: int) -> Any:
        torch.set_num_threads(threads)
        lstm, readout = converted(case, weights)
        learnt = [p for p in (*lstm.parameters(), *readout.parameters()) if p.requires_grad]
        adam = torch.optim.Adam(learnt, lr=LEARNING_RATE, eps=EPSILON, fused=fused or None)
        zeros = torch.zeros(1, case.B, case.H, dtype=learnt[0].dtype)
        return lstm, readout, learnt, adam, (zeros, zeros)

    def epoch(state: Any) -> tuple[Any, Any]:
        (lstm, readout, learnt, adam, carry), losses = state, []
        for inputs, targets in chunks:
            xs = functional.one_hot(inputs, case.D).to(learnt[0].dtype) if case.symbols else inputs
            ys, carry = lstm(xs, carry)
            outputs = readout(ys)
            if case.symbols:
                loss = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())
            else:
                loss = functional.mse_loss(outputs, targets)
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learnt, CLIP)
            adam.step()
            carry = tuple(c.detach() for c in carry)
            losses.append(loss.detach())
        return (lstm, readout, learnt, adam, carry), losses

    def compile() -> tuple[None, None]:
        return None, None

    ways = {PER_CHUNK: (False, THREADS), FUSED: (True, THREADS)} | ({ONE_THREAD: (True, 1)} if case.B == 1 else {})
    return {
        name: Form(lambda way=way: begin(*way), epoch, compile, lambda value: value) for name, way in ways.items()
    }  # fmt: skip


def converted(case: Case, weights: Weights) -> tuple[Any, Any]:
    """PyTorch multiplies by the transposed matrix; gates i, f, g, o as ours."""
    values = [torch.from_numpy(a.T.copy()) for a in weights]
    lstm: Any = nn.LSTM(case.D, case.H, dtype=values[0].dtype)
    readout = nn.Linear(case.H, case.outputs, dtype=values[0].dtype)
    with torch.no_grad():
        for parameter, value in zip((lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0), values[:3], strict=True):
            parameter.copy_(value)
        lstm.bias_hh_l0.zero_()
        readout.weight.copy_(values[3])
        readout.bias.copy_(values[4])
    lstm.bias_hh_l0.requires_grad_(False)
    return lstm, readout
