"""The settings of a run, new or resumed: what the command line says, what config.json says, and where they may differ."""

import dataclasses
import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from experiments.support.common.json_file import read_config
from experiments.support.train.data import RunData
from experiments.support.train.task import to_json

Config = TypeVar("Config")
# What may change when a run is resumed: how long, how often, on what and where from; never what is computed.
FREE = (
    "data",
    "out",
    "resume",
    "epochs",
    "minutes",
    "devices",
    "coordinator",
    "processes",
    "process",
    "cluster",
    "memory",
    "valid_every",
    "checkpoint_seconds",
    "keep",
    "tensorboard",
)
EPOCHS = 10.0


def settings(parse: Callable[..., Config], kind: type[Config]) -> Config:
    """Reads the command line; with --resume, the run's own flags are the defaults.

    Args:
      parse: `parse() -> config` from the command line, or `parse(default=config)`.
      kind: the dataclass.

    Raises:
      FileNotFoundError: --resume names no run. ValueError: flags that contradict each other, or the run that is resumed.
    """
    given: Any = parse()
    if given.resume is None:
        if not given.data:
            raise ValueError(
                "--data is needed: the file or files to learn from (.csv, .parquet, .npy; text for characters)"
            )
        if given.epochs is None and given.minutes is None:
            given = dataclasses.replace(given, epochs=EPOCHS)
        _check_limits(given.epochs, given.minutes)
        return dataclasses.replace(given, data=tuple(path.absolute() for path in given.data))
    folder = given.resume
    if given.out is not None:
        raise ValueError(f"--resume goes on in the run's own folder; leave out --out (got {given.out})")
    saved = read_config(folder)
    names = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    if unknown := sorted(set(saved) - set(names) - {"experiment", "task", "lengths", "metric"}):
        raise ValueError(f"{folder}/config.json has the field {unknown[0]!r}, which this version does not know")
    saved["task"] = {"text": "characters"}.get(saved["task"]["kind"], saved["task"]["kind"])
    old: Any = kind(**{name: _typed(name, saved[name]) for name in names if name in saved})
    old = dataclasses.replace(old, resume=folder, out=None)
    now: Any = parse(default=old)
    for name in names:
        if name not in FREE and getattr(now, name) != getattr(old, name):
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} is {getattr(old, name)} in the run {folder}, and {getattr(now, name)} on the command line. What "
                "is computed cannot change on the way: leave it out to go on, or start a new run"
            )
    if now.epochs != old.epochs and now.minutes == old.minutes:
        now = dataclasses.replace(now, minutes=None)
    elif now.minutes != old.minutes and now.epochs == old.epochs:
        now = dataclasses.replace(now, epochs=None)
    _check_limits(now.epochs, now.minutes)
    return dataclasses.replace(now, data=tuple(path.absolute() for path in now.data))


def folder_of(config: Any) -> Path:
    """Returns the run's folder: the one that is resumed, --out, or a new one by date.

    Raises:
      FileExistsError: --out holds a run.
    """
    if config.resume is not None:
        return config.resume
    folder = config.out or Path("runs") / "train" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if (folder / "config.json").exists():
        raise FileExistsError(
            f"--out {folder} holds a run already. Go on with it by --resume {folder}, or give another folder"
        )
    return folder


def write_config(folder: Path, config: Any, data: RunData, metric: str) -> None:
    """Writes config.json: the flags, and under "task" how the model is fed; whole, or not at all."""
    text = json.dumps(as_json(config) | {"metric": metric} | _data_json(data), indent=2) + "\n"
    aside = folder / "config.json.new"
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / "config.json")


def as_json(config: Any) -> dict[str, Any]:
    """Returns the flags as JSON has them."""
    fields = dataclasses.asdict(config)
    return {"experiment": "train"} | {
        name: _plain(value) for name, value in fields.items() if name not in ("resume", "out")
    }


def must_agree(config: Any, data: RunData) -> dict[str, Any]:
    """Returns what a checkpoint must have in common with the run that goes on from it."""
    return {name: value for name, value in as_json(config).items() if name not in FREE} | _data_json(data)


def _data_json(data: RunData) -> dict[str, Any]:
    return {"task": to_json(data.task), "lengths": list(data.source.lengths)[:1000]}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(name: str, value: Any) -> Any:
    if name == "data":
        return tuple(Path(item) for item in value)
    return tuple(value) if isinstance(value, list) else value


def _check_limits(epochs: float | None, minutes: float | None) -> None:
    if (epochs is None) == (minutes is None):
        got = "neither" if epochs is None else f"--epochs {epochs:g} and --minutes {minutes:g}"
        raise ValueError(f"how long to train is said by --epochs or by --minutes, one of them; got {got}")
    if not (epochs or minutes or 0) > 0:
        raise ValueError(f"--epochs and --minutes are above 0; got {epochs if epochs is not None else minutes:g}")
