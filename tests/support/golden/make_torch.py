"""Writes torch_cells.npz: PyTorch's RNN, GRU and LSTM in float64, with weights, inputs, outputs
and gradients.

    python tests/support/golden/make_torch.py        # a second; needs torch (CPU), which the tests
    do not

Every name is `KIND_WHAT`, KIND one of rnn, gru, lstm. Weights and their gradients keep PyTorch's
layout `[G, D]`, gate blocks in PyTorch's order, and names: w_ih, w_hh, b_ih, b_hh; a gradient is
`KIND_grad_WHAT` of sum(ys * KIND_cotangent).
"""

from pathlib import Path

import numpy as np
import torch

T, B, D, H = 6, 2, 3, 4
FIELDS = {
    "w_ih": "weight_ih_l0",
    "w_hh": "weight_hh_l0",
    "b_ih": "bias_ih_l0",
    "b_hh": "bias_hh_l0",
}


def main() -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for kind, make in (("rnn", torch.nn.RNN), ("gru", torch.nn.GRU), ("lstm", torch.nn.LSTM)):
        layer = make(D, H, dtype=torch.float64)
        for weight in layer.parameters():
            weight.data = torch.from_numpy(rng.uniform(-1, 1, tuple(weight.shape)))
        states = {
            s: torch.from_numpy(rng.normal(size=(1, B, H))).requires_grad_()
            for s in ("h", "c")[: 1 + (kind == "lstm")]
        }
        xs = torch.from_numpy(rng.normal(size=(T, B, D))).requires_grad_()
        cotangent = torch.from_numpy(rng.normal(size=(T, B, H)))
        ys, final = layer(xs, tuple(states.values()) if kind == "lstm" else states["h"])
        (ys * cotangent).sum().backward()
        found = {"xs": xs, "cotangent": cotangent, "ys": ys, "grad_xs": xs.grad}
        for s, last in zip(states, final if kind == "lstm" else (final,), strict=True):
            found |= {f"{s}_0": states[s][0], f"{s}_T": last[0], f"grad_{s}_0": states[s].grad[0]}
        for name, torch_name in FIELDS.items():
            weight = getattr(layer, torch_name)
            found |= {name: weight, f"grad_{name}": weight.grad}
        arrays |= {f"{kind}_{name}": value.detach().numpy() for name, value in found.items()}
    np.savez_compressed(Path(__file__).with_name("torch_cells.npz"), **arrays)


if __name__ == "__main__":
    main()
