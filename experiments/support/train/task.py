"""The task of a run, a dataclass that is stored in config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.special

from tbptt.data import Scaling, Source, standardised

# A task is a frozen dataclass of plain values with
#   outputs                   number of outputs of the readout per step
#   answers(outputs) -> {}    columns in the units of the data, from outputs `[n, outputs]`


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Forecast of a column `horizon` rows ahead; 0 for the same row.

        xs[t] = (rows[t, columns] - mean) / scale
        prediction[t, i] = target_mean + target_scale outputs[t, i]   of target[t + horizons[i]]

    columns: the inputs, in order; the target is an input only if it is listed.
    mean, scale: one number per input column; like target_mean and target_scale, they are those of
      the training part.
    outputs: number of horizons that the readout predicts, evenly spaced up to `horizon`.
    group: the column that separates the recordings of a file (the carry is reset where it changes);
      "": each file is one recording.
    """

    columns: tuple[str, ...]
    target: str
    horizon: int
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    target_mean: float
    target_scale: float
    outputs: int = 1
    group: str = ""

    @property
    def horizons(self) -> tuple[int, ...]:
        """The horizons, ascending."""
        return tuple((i + 1) * self.horizon // self.outputs for i in range(self.outputs))

    def column(self, name: str, i: int) -> str:
        """Return the name of a column of predictions; of several, it ends in the horizon."""
        return f"{name}_{self.horizons[i]}" if self.outputs > 1 else name

    def answers(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return `prediction`, or one column per horizon, in the units of the target.

        Predictions from float32 are rounded to 1e-6 of the scale of the target, or finer.
        """
        values = self.target_mean + self.target_scale * np.asarray(outputs, np.float64)
        if outputs.dtype == np.float32:
            values = np.round(values, 6 - int(np.floor(np.log10(self.target_scale))))
        return {self.column("prediction", i): values[:, i] for i in range(self.outputs)}


@dataclasses.dataclass(frozen=True)
class Classify:
    """Class of a recording, a value of the target column, predicted after every row.

    classes: the values, numbers or text; class i is output i.
    columns, mean, scale, group: as in Forecast.
    answer: "last": trained at the last row of each recording, and the prediction is the output of
    the row; "every": trained at every row, and the prediction is the mean of the log-probabilities
    of the rows of the recording up to this one.
    """

    columns: tuple[str, ...]
    target: str
    classes: tuple[int | float | str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    group: str = ""
    answer: str = "last"

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def answers(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return `prediction`, the most likely class, and probabilities `p_CLASS`."""
        chances = _chances(outputs)
        named = {
            f"p_{shown_class(value)}": chances[:, index] for index, value in enumerate(self.classes)
        }
        return {"prediction": np.asarray(self.classes)[np.argmax(chances, axis=1)], **named}


def scaled(task: Forecast | Classify, source: Source) -> Source:
    """Return the source with the inputs and the target of a forecast in their scaled units."""
    numbers = dict(zip(task.columns, zip(task.mean, task.scale, strict=True), strict=True))
    if isinstance(task, Forecast):
        numbers[task.target] = task.target_mean, task.target_scale
    mean, scale = (
        np.asarray([numbers.get(name, (0.0, 1.0))[i] for name in source.names]) for i in (0, 1)
    )
    return standardised(source, Scaling(mean, scale), np.float32)


def shown_class(value: int | float | str) -> str:
    """Return a class as text: 7 for 7.0."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


@dataclasses.dataclass(frozen=True)
class Characters:
    """Next character of a text.

    vocabulary: the bytes that occur, ascending; the index of a byte is its symbol number.
    """

    vocabulary: tuple[int, ...]

    @property
    def outputs(self) -> int:
        return len(self.vocabulary)

    def answers(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return `prediction`, the most likely next symbol, and its probability."""
        chances = _chances(outputs)
        best = np.argmax(chances, axis=1)
        return {
            "prediction": shown_symbols(self)[best],
            "p_prediction": chances[np.arange(len(best)), best],
        }


def _chances(outputs: np.ndarray) -> np.ndarray:
    """Return probabilities, computed in float64, in the precision of the outputs."""
    chances = scipy.special.softmax(np.asarray(outputs, np.float64), axis=1)
    return chances.astype(outputs.dtype)


def shown_symbols(task: Characters) -> np.ndarray:
    """Return the symbols for display, escaped (\\n, \\x..) unless printable ASCII."""
    return np.array([chr(byte).encode("unicode_escape").decode() for byte in task.vocabulary])


Task = Forecast | Classify | Characters
_KINDS: dict[str, type[Forecast] | type[Classify] | type[Characters]] = {
    "forecast": Forecast,
    "classify": Classify,
    "text": Characters,
}


def to_json(task: Task) -> dict[str, Any]:
    """Return the value of "task" in config.json."""
    kind = next(name for name, known in _KINDS.items() if type(task) is known)
    return {"kind": kind, **dataclasses.asdict(task)}


def from_json(data: Mapping[str, Any], where: str) -> Task:
    """Return the task that `to_json` described.

    Raises:
        ValueError: `data` is not a task; the message names the file and the field.
    """
    kind = _KINDS.get(data.get("kind", ""))
    if kind is None:
        raise ValueError(
            f"{where}: task.kind must be one of {', '.join(_KINDS)}; got {data.get('kind')!r}"
        )
    fields = {field.name for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in data.items()
        if name != "kind"
    }
    needed = {
        field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING
    }
    if wrong := sorted((needed - set(given)) | (set(given) - fields)):
        raise ValueError(
            f"{where}: task must have the fields {', '.join(sorted(fields))}; missing or unknown: "
            f"{', '.join(wrong)}"
        )
    return kind(**given)
