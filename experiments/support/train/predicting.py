"""Predict recordings of any length block by block, and score the predictions."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import scipy.special

import tbptt
from experiments.support.train.linear import SourceForecasts
from experiments.support.train.mean_log_probabilities import MeanLogProbabilities, initial_mean
from experiments.support.train.model import Model
from experiments.support.train.prediction_steps import Steps, read_steps
from experiments.support.train.row_labels import RowLabels
from experiments.support.train.task import (
    Characters,
    Classify,
    Forecast,
    Task,
    scaled,
    shown_class,
    shown_symbols,
)
from tbptt.data import Source


def predict_blocks(
    task: Task,
    model: Model,
    params: Any,
    source: Source,
    block: int,
    *,
    score: bool = False,
    skip: int = 0,
    carry: Any = None,
    ended: Callable[[Any], None] | None = None,
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, Steps]]:
    """Run the model over a source in blocks, and yield the predictions of each.

        carry = initial
        for start in range(0, rows, block):
            carry, outputs = predict(params, carry, rows[start : start + block])

    Only one block is in memory. All blocks run the same compiled program, and the last one is
    padded with zeros. A prediction is therefore bit for bit independent of later rows. Another
    `block` may round differently.

    Args:
        task: the task of the model.
        source: the rows, from `open_for`, or a part of them.
        block: steps per block, at least 1.
        score: whether the source contains the target; adds the columns `truth`, and `p_truth` for
          classes and symbols.
        skip: number of rows at the start that only advance the carry; they are not yielded.
        carry: the carry that enters the first row, which then continues a recording; None: the
          initial carry.
        ended: called with the carry after the last row.

    Yields:
        (columns, outputs, steps) for the n rows of a block. columns: "row", counted from the first
        of the source, the columns of `RowLabels`, and the predictions. outputs: those of the
        readout plus the linear forecast, `[n, K]`. steps: the inputs and true values.
    """
    if block < 1:
        raise ValueError(f"--block must be at least 1 step; got {block}")
    run, total = _program(model), sum(source.lengths)
    continued, linear, mean, last = carry is not None, None, None, None
    if model.linear is not None and isinstance(task, Forecast):
        carry, before = carry if continued else (None, None)
        places = [source.names.index(name) for name in task.columns]
        linear = SourceForecasts(model.linear, scaled(task, source), places, before)
    if isinstance(task, Classify) and task.answer == "every":
        carry, before = carry if continued else (None, initial_mean(task.outputs))
        mean = MeanLogProbabilities(before)
    carry = model.cell.initial_carry((1,)) if carry is None else carry
    labels = RowLabels(source, task.horizons if isinstance(task, Forecast) else ())
    for start in range(0, total, block):
        steps = read_steps(task, source, start, min(start + block, total), score)
        n = len(steps.resets)
        forecasts = 0.0
        if linear is not None:
            forecasts = linear(start, start + n)
            more = forecasts.astype(steps.inputs.dtype)
            steps = steps._replace(inputs=np.concatenate([steps.inputs, more], axis=1))
        if continued and start == 0:
            steps = steps._replace(resets=np.where(np.arange(n) == 0, False, steps.resets))
        if ended is not None and start + block >= total:  # without the padding
            exact = [
                leaf[:, None]
                for leaf in (steps.inputs, steps.resets, steps.mask)
                if leaf is not None
            ]
            last = run(params, carry, *exact)[0]
        padded = [
            np.concatenate([leaf, np.zeros((block - n, *leaf.shape[1:]), leaf.dtype)])
            for leaf in (steps.inputs, steps.resets, steps.mask)
            if leaf is not None
        ]
        carry, outputs = run(params, carry, *(leaf[:, None] for leaf in padded))
        outputs = np.asarray(outputs)[:n, 0]
        outputs = (outputs + forecasts).astype(outputs.dtype)
        if mean is not None:
            outputs = mean(outputs, steps.resets, steps.mask)
        if ended is not None and start + block >= total:
            past = mean.state if mean else linear.last_rows() if linear else None
            ended(last if past is None else (last, past))
        keep = slice(min(max(skip - start, 0), n), n)
        if keep.start < n:
            kept = Steps(*(leaf[keep] for leaf in steps if leaf is not None))
            first = start + keep.start
            named, target_times = labels.columns(first, start + n)
            columns = {"row": np.arange(first, start + n), **named}
            columns |= _columns(task, target_times, outputs[keep], kept, score)
            yield columns, outputs[keep], kept


@functools.cache
def _program(model: Model) -> Callable[..., tuple[Any, jax.Array]]:
    def run(params: Any, carry: Any, inputs: Any, resets: Any, mask: Any = None) -> tuple[Any, Any]:
        batch = tbptt.Batch(inputs, None, resets=resets, mask=mask)
        return tbptt.predict(
            model.cell,
            model.readout,
            params,
            carry,
            batch,
            embedding=model.embedding,
            unroll=model.unroll,
        )

    return jax.jit(run)


def _columns(
    task: Task,
    target_times: list[np.ndarray],
    outputs: np.ndarray,
    steps: Steps,
    score: bool,
) -> dict[str, np.ndarray]:
    answers = task.answers(outputs)
    if isinstance(task, Forecast):
        found = {}
        for i, (name, values) in enumerate(answers.items()):
            if target_times:
                found[task.column("target_time", i)] = target_times[i]
            if score:
                truth = np.where(steps.scored[:, i], steps.truth[:, i], np.nan)
                found[task.column("truth", i)] = truth
            found[name] = values
        return found
    if not score:
        return answers
    names = (
        shown_symbols(task)
        if isinstance(task, Characters)
        else np.array([shown_class(value) for value in task.classes])
    )
    chances = scipy.special.softmax(outputs.astype(np.float64), axis=1)[
        np.arange(len(outputs)), steps.truth
    ].astype(outputs.dtype)
    truth = {
        "truth": np.where(steps.scored, names[steps.truth], ""),
        "p_truth": np.where(steps.scored, chances, np.nan),
    }
    return {**truth, **answers}


class Score:
    """Errors of predictions over the rows that count, accumulated block by block.

    rmse, mae           of a forecast, over all horizons, in the units of the target
    standardised_rmse, standardised_mae    the same, divided by the standard deviation of the target
                        over the training part; predicting its mean has an error of about 1
    accuracy            of classes: fraction of recordings with the right class at their end
    bits_per_byte       of characters: mean negative log2 of the probability
    """

    def __init__(self, task: Task) -> None:
        self._task, self._sum, self._count = task, 0.0, 0
        horizons = task.outputs if isinstance(task, Forecast) else 0
        self._squares, self._sizes, self._counts = np.zeros((3, horizons))

    def add(self, outputs: np.ndarray, steps: Steps) -> None:
        """Add one block of `predict_blocks`."""
        if isinstance(self._task, Forecast):
            scaled = (steps.truth - self._task.target_mean) / self._task.target_scale
            errors = np.where(steps.scored, outputs.astype(np.float64) - scaled, 0)
            self._squares += (errors**2).sum(axis=0)
            self._sizes += np.abs(errors).sum(axis=0)
            self._counts += steps.scored.sum(axis=0)
            return
        outputs, truth = outputs[steps.scored].astype(np.float64), steps.truth[steps.scored]
        self._count += len(truth)
        if isinstance(self._task, Characters):
            logs = scipy.special.log_softmax(outputs, axis=1)
            self._sum -= float(np.sum(logs[np.arange(len(truth)), truth])) / np.log(2)
        else:
            self._sum += int(np.sum(np.argmax(outputs, axis=1) == truth))

    def result(self) -> dict[str, float | int]:
        """Return the errors by name, and `scored`, the number of predictions.

        Without predictions there is no error.
        """
        if isinstance(self._task, Forecast):
            return self._errors(self._squares.sum(), self._sizes.sum(), self._counts.sum())
        if not self._count:
            return {"scored": 0}
        name = "bits_per_byte" if isinstance(self._task, Characters) else "accuracy"
        return {name: self._sum / self._count, "scored": self._count}

    def by_horizon(self) -> list[dict[str, float | int]]:
        """Return the result of each horizon of a forecast, after "horizon"."""
        assert isinstance(self._task, Forecast)
        sums = zip(self._task.horizons, self._squares, self._sizes, self._counts, strict=True)
        return [{"horizon": horizon} | self._errors(*one) for horizon, *one in sums]

    def _errors(self, squares: Any, sizes: Any, count: Any) -> dict[str, float | int]:
        if not count or not isinstance(self._task, Forecast):
            return {"scored": 0}
        root, mean, scale = (squares / count) ** 0.5, sizes / count, self._task.target_scale
        return {
            "rmse": float(root * scale),
            "mae": float(mean * scale),
            "standardised_rmse": float(root),
            "standardised_mae": float(mean),
            "scored": int(count),
        }
