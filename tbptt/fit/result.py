"""The result of `fit`: parameters, state, and the metrics of every pass; parameters in a file."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import numpy as np

from tbptt.training import TrainState
from tbptt.types import Params


class Fit(NamedTuple):
    """The result of `fit`.

    params:  those with the lowest validation score; the last ones without a validation
    state:   the last train state
    history: one dict per pass: pass, updates (so far), seconds, loss (mean of the pass, before each
      update), grad_norm, clipped (fraction), non_finite (count), and the scores of `validate` as
      valid_NAME; None where unknown. `polars.DataFrame(history)` makes a table of it.
    updates: the number of updates
    ended:   what ended the run: "updates" (all passes), "seconds", "patience", "callback", or
      "stopped" (Ctrl-C or SIGTERM)
    """

    params: Params
    state: TrainState
    history: list[dict[str, Any]]
    updates: int
    ended: str

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the losses by pass on a logarithmic axis, with the best pass marked.

        Args:
          path: where to write the figure (.png, .pdf, .svg); None: nowhere.

        Returns:
          The matplotlib figure.

        Raises:
          ImportError: matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axis = figure.add_subplot(
            xlabel="pass over the training data", ylabel="mean loss", yscale="log"
        )
        passes = [row["pass"] for row in self.history]
        axis.plot(passes, [row["loss"] for row in self.history], color="#0072B2", label="training")
        name = next(
            (name for row in self.history[:1] for name in row if name.startswith("valid_")), None
        )
        if name is not None:
            scores = [row[name] for row in self.history]
            axis.plot(passes, scores, color="#D55E00", ls="--", label=name.replace("_", " "))
            best = min((s, p) for s, p in zip(scores, passes, strict=True) if s is not None)
            axis.plot(best[1], best[0], "o", color="#D55E00", label=f"best: {best[0]:.4g}")
        axis.grid(alpha=0.3)
        axis.legend()
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def history_of(rows: list[dict[str, Any]], per_pass: int) -> list[dict[str, Any]]:
    """Return the rows of a log as one dict per pass, see `Fit.history`."""
    history: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["kind"] not in ("train", "valid"):
            continue
        here = history.setdefault(
            -(-row["step"] // per_pass), {"pass": -(-row["step"] // per_pass), "updates": 0}
        )
        here |= {"updates": row["step"], "seconds": row["seconds"]}
        if row["kind"] == "train":
            here |= {name: row[name] for name in ("loss", "grad_norm", "clipped", "non_finite")}
        else:
            skipped = ("kind", "step", "seconds", "metric")
            here |= {f"valid_{name}": v for name, v in row.items() if name not in skipped}
    return [history[number] for number in sorted(history)]


def save(params: Params, path: str | os.PathLike[str]) -> None:
    """Write parameters into one file, atomically: a killed process leaves the old file intact.

    Args:
      params: any pytree of arrays, dicts, lists, tuples and NamedTuples.
      path: the file, conventionally `*.msgpack`; an existing one is replaced.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(flax.serialization.to_bytes(jax.device_get(params)))
    temporary.replace(path)


def load(path: str | os.PathLike[str], like: Params) -> Params:
    """Read parameters that `save` wrote.

    Args:
      path: the file.
      like: parameters of the same model, for example from `tbptt.init_params`; only their
        structure, shapes and dtypes are used.

    Returns:
      The parameters, with numpy leaves.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file holds no parameters, or those of another model; the message names the
        leaf.
    """
    data = Path(path).read_bytes()
    try:
        params = flax.serialization.from_bytes(like, data)
    except Exception as error:  # of msgpack, of flax: many kinds
        raise ValueError(
            f"{path} does not hold parameters of this model: {error}. Make the model with the "
            "settings it had when it was saved"
        ) from error
    found = jax.tree_util.tree_leaves_with_path(params)
    for (leaf_path, got), want in zip(found, jax.tree.leaves(like), strict=True):
        if np.shape(got) != np.shape(want) or np.dtype(got.dtype) != np.dtype(want.dtype):
            raise ValueError(
                f"{path}: params{jax.tree_util.keystr(leaf_path)} is "
                f"{got.dtype}{list(np.shape(got))}, but "
                f"{np.dtype(want.dtype)}{list(np.shape(want))} in `like`. Make the model with the "
                "settings it had when it was saved"
            )
    return params
