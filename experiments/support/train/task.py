"""What a run predicts, and from what: kept in config.json, so that predict feeds the model as training did."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.special

# A task is a frozen dataclass of plain values with
#   outputs                   how many numbers the readout gives a step
#   answers(outputs) -> {}    columns for people, in the data's own units, of the readout's outputs `[n, outputs]`


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A column's value some rows later, 0 for the same row.

        xs[t] = (rows[t, columns] - mean) / scale
        prediction[t] = target_mean + target_scale outputs[t, -1]              of target[t + horizon]

    columns: what is fed, in order; mean, scale: a number for each, of the training part, as are the target's.
    outputs: the readout may forecast shorter horizons too; the last is the one that counts.
    group: the column that tells a file's recordings apart (the carry starts afresh where it changes); "": one recording.
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

    def answers(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `prediction` in the target's own units."""
        return {"prediction": self.target_mean + self.target_scale * np.asarray(outputs[:, -1], np.float64)}


@dataclasses.dataclass(frozen=True)
class Classify:
    """The class of a recording, told after every row; classes are the values of the target column, ascending.

    columns, mean, scale, group: as in Forecast.
    """

    columns: tuple[str, ...]
    target: str
    classes: tuple[float, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    group: str = ""

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def answers(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `prediction`, the likeliest class, and `p_CLASS` for every class."""
        chances = scipy.special.softmax(np.asarray(outputs, np.float64), axis=1)
        named = {f"p_{value:g}": chances[:, index] for index, value in enumerate(self.classes)}
        return {"prediction": np.asarray(self.classes)[np.argmax(chances, axis=1)], **named}


@dataclasses.dataclass(frozen=True)
class Characters:
    """The next symbol of a text; vocabulary holds every byte that it may have, ascending; its place is its number."""

    vocabulary: tuple[int, ...]

    @property
    def outputs(self) -> int:
        return len(self.vocabulary)

    def answers(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `prediction`, the likeliest next symbol (escaped if it is no printable ASCII), and its probability."""
        chances = scipy.special.softmax(np.asarray(outputs, np.float64), axis=1)
        best = np.argmax(chances, axis=1)
        return {"prediction": shown_symbols(self)[best], "p_prediction": chances[np.arange(len(best)), best]}


def shown_symbols(task: Characters) -> np.ndarray:
    """Returns the symbols as they are written in a table: a new line is \\n, a byte that is no printable ASCII \\x.."""
    return np.array([chr(byte).encode("unicode_escape").decode() for byte in task.vocabulary])


Task = Forecast | Classify | Characters
_KINDS: dict[str, type[Forecast] | type[Classify] | type[Characters]] = {
    "forecast": Forecast,
    "classify": Classify,
    "text": Characters,
}


def to_json(task: Task) -> dict[str, Any]:
    """Returns what stands under "task" in config.json."""
    kind = next(name for name, known in _KINDS.items() if type(task) is known)
    return {"kind": kind, **dataclasses.asdict(task)}


def from_json(data: Mapping[str, Any], where: str) -> Task:
    """Reads a task back.

    Raises:
        ValueError: it is not one; names the file and the field.
    """
    kind = _KINDS.get(data.get("kind", ""))
    if kind is None:
        raise ValueError(f"{where}: task.kind must be one of {', '.join(_KINDS)}; got {data.get('kind')!r}")
    fields = {field.name for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data.items() if name != "kind"
    }
    needed = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    if wrong := sorted((needed - set(given)) | (set(given) - fields)):
        raise ValueError(
            f"{where}: task must have the fields {', '.join(sorted(fields))}; missing or unknown: {', '.join(wrong)}"
        )
    return kind(**given)
