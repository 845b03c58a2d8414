"""PyTorch, as in its tutorials: `nn.LSTM`, `nn.Linear`, detached carry, `clip_grad_norm_`, Adam.

PyTorch has two bias vectors where the other libraries have one. `bias_hh` is zero and not
trained, so that Adam's update of the sum is that of the others. Besides the documented form: Adam
with `fused=True`, and for a batch of one also with a single thread.
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
    """Make the forms. Nothing is compiled, and on a CPU every call has ended when it returns."""
    inputs, targets = (torch.from_numpy(a) for a in data)
    if case.symbols:
        inputs, targets = inputs.long(), targets.long()
    chunks = list(zip(inputs, targets, strict=True))

    def begin(fused: bool, threads: int) -> Any:
        torch.set_num_threads(threads)
        lstm, readout = converted(case, weights)
        trained = [p for p in (*lstm.parameters(), *readout.parameters()) if p.requires_grad]
        adam = torch.optim.Adam(trained, lr=LEARNING_RATE, eps=EPSILON, fused=fused or None)
        zeros = torch.zeros(1, case.B, case.H, dtype=trained[0].dtype)
        return lstm, readout, trained, adam, (zeros, zeros)

    def epoch(state: Any) -> tuple[Any, Any]:
        (lstm, readout, trained, adam, carry), losses = state, []
        for inputs, targets in chunks:
            xs = inputs
            if case.symbols:
                xs = functional.one_hot(inputs, case.D).to(trained[0].dtype)
            ys, carry = lstm(xs, carry)
            outputs = readout(ys)
            if case.symbols:
                loss = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())
            else:
                loss = functional.mse_loss(outputs, targets)
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, CLIP)
            adam.step()
            carry = tuple(c.detach() for c in carry)
            losses.append(loss.detach())
        return (lstm, readout, trained, adam, carry), losses

    def compile() -> tuple[None, None]:
        return None, None

    options = {PER_CHUNK: (False, THREADS), FUSED: (True, THREADS)}
    if case.B == 1:
        options[ONE_THREAD] = (True, 1)
    return {
        name: Form(lambda chosen=chosen: begin(*chosen), epoch, compile, lambda value: value)
        for name, chosen in options.items()
    }


def converted(case: Case, weights: Weights) -> tuple[Any, Any]:
    """Convert the weights: PyTorch has every matrix transposed, and gates i, f, g, o as ours."""
    values = [torch.from_numpy(a.T.copy()) for a in weights]
    lstm: Any = nn.LSTM(case.D, case.H, dtype=values[0].dtype)
    readout = nn.Linear(case.H, case.outputs, dtype=values[0].dtype)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(values[0])
        lstm.weight_hh_l0.copy_(values[1])
        lstm.bias_ih_l0.copy_(values[2])
        lstm.bias_hh_l0.zero_()
        readout.weight.copy_(values[3])
        readout.bias.copy_(values[4])
    lstm.bias_hh_l0.requires_grad_(False)
    return lstm, readout
