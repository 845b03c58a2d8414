"""Combine the command line and config.json into the settings of a new or resumed run."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from experiments.support.common.json_file import read_config
from experiments.support.train.data import RunData
from experiments.support.train.task import to_json

Config = TypeVar("Config")
# Settings that may change when a run is resumed, because its checkpoints fit any value of them.
# epochs, minutes and patience do affect the learning rate and the end of the run.
CHANGEABLE = (
    "data",
    "test_data",
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
    "patience",
    "checkpoint_seconds",
    "keep",
    "tensorboard",
)
PATHS = ("data", "test_data")
EPOCHS = 10.0
WRITTEN = ("experiment", "task", "lengths", "metric", "notes", "chosen")  # fields without a flag


def settings(parse: Callable[..., Config], kind: type[Config]) -> Config:
    """Parse the command line; with --resume, the flags of that run are the defaults.

    Args:
      parse: `parse() -> config` from the command line, or `parse(default=config)`.
      kind: the dataclass of the settings.

    Raises:
      FileNotFoundError: --resume does not name the folder of a run.
      ValueError: flags contradict each other or the resumed run.
    """
    given: Any = parse()
    if given.resume is None:
        if not given.data:
            raise ValueError(
                "--data is required: one or more .csv, .parquet or .npy files, or text files for "
                "--task characters"
            )
        if given.epochs is None and given.minutes is None:
            given = dataclasses.replace(given, epochs=EPOCHS)
        _check_limits(given.epochs, given.minutes)
        return _absolute(given)
    folder = given.resume
    if given.out is not None:
        raise ValueError(f"--resume writes to the folder of the run; omit --out (got {given.out})")
    saved = read_config(folder)
    saved.setdefault("answer", "last")  # of runs before the flag
    names = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    if unknown := sorted(set(saved) - set(names) - set(WRITTEN)):
        raise ValueError(
            f"{folder}/config.json has the unknown field {unknown[0]!r}; the run is of another "
            f"version"
        )
    # In the file `task` is the whole Task; its kind stands for the flag, "text" for characters.
    saved["task"] = {"text": "characters"}.get(saved["task"]["kind"], saved["task"]["kind"])
    old: Any = kind(**{name: _typed(name, saved[name]) for name in names if name in saved})
    old = dataclasses.replace(old, resume=folder, out=None)
    now: Any = parse(default=old)
    for name in names:
        if name not in CHANGEABLE and getattr(now, name) != getattr(old, name):
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} is {getattr(old, name)} in the run {folder}, but {getattr(now, name)} on "
                f"the command line. This "
                f"setting cannot change when a run is resumed: omit {flag}, or start a new run"
            )
    if now.epochs != old.epochs and now.minutes == old.minutes:
        now = dataclasses.replace(now, minutes=None)
    elif now.minutes != old.minutes and now.epochs == old.epochs:
        now = dataclasses.replace(now, epochs=None)
    _check_limits(now.epochs, now.minutes)
    return _absolute(now)


def folder_of(config: Any) -> Path:
    """Return the folder of the run: that of --resume, --out, or a new one named by the date.

    Raises:
      FileExistsError: --out contains a run.
    """
    if config.resume is not None:
        return config.resume
    folder = config.out or Path("runs") / "train" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if (folder / "config.json").exists():
        raise FileExistsError(
            f"--out {folder} already contains a run. Resume it by --resume {folder}, or give "
            f"another folder"
        )
    return folder


def changed_limit(config: Any) -> str:
    """Return a clause on how the limit of a resumed run changed since its config.json, or ""."""
    if config.resume is None:
        return ""
    old = read_config(config.resume)
    before = _limit(old.get("epochs"), old.get("minutes"))
    now = _limit(config.epochs, config.minutes)
    return "" if now == before else f"; {now}, before {before}: the learning rate changes with it"


def _limit(epochs: float | None, minutes: float | None) -> str:
    return f"--epochs {epochs:g}" if minutes is None else f"--minutes {minutes:g}"


def write_config(
    folder: Path, config: Any, data: RunData, metric: str, chosen: Sequence[str] = ()
) -> None:
    """Write config.json atomically.

    It has the flags, the task, how the files were read, and `chosen`, the settings that were chosen
    from the data, with the reasons. A resumed run keeps `chosen`.
    """
    if (folder / "config.json").exists():
        chosen = chosen or read_config(folder).get("chosen", ())
    notes = [*getattr(data.source, "warnings", ()), *getattr(data.source, "notes", ())]
    more = {"metric": metric, "notes": notes, "chosen": list(chosen)} | _data_json(data)
    text = json.dumps(as_json(config) | more, indent=2) + "\n"
    temporary = folder / "config.json.new"
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / "config.json")


def as_json(config: Any) -> dict[str, Any]:
    """Return the flags as JSON values."""
    fields = dataclasses.asdict(config)
    return {"experiment": "train"} | {
        name: _plain(value) for name, value in fields.items() if name not in ("resume", "out")
    }


def fixed_settings(config: Any, data: RunData) -> dict[str, Any]:
    """Return the settings that a checkpoint and the run that resumes from it must share."""
    return {
        name: value for name, value in as_json(config).items() if name not in CHANGEABLE
    } | _data_json(data)


def _data_json(data: RunData) -> dict[str, Any]:
    return {"task": to_json(data.task), "lengths": list(data.source.lengths)[:1000]}


def _absolute(config: Any) -> Any:
    """Return the settings with absolute paths of the files."""
    paths = {name: tuple(p.absolute() for p in getattr(config, name)) for name in PATHS}
    return dataclasses.replace(config, **paths)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(name: str, value: Any) -> Any:
    if name in PATHS:
        return tuple(Path(item) for item in value)
    if name == "init_from":
        return None if value is None else Path(value)
    return tuple(value) if isinstance(value, list) else value


def _check_limits(epochs: float | None, minutes: float | None) -> None:
    if (epochs is None) == (minutes is None):
        got = "neither" if epochs is None else f"--epochs {epochs:g} and --minutes {minutes:g}"
        raise ValueError(f"exactly one of --epochs and --minutes must be given; got {got}")
    if not (epochs or minutes or 0) > 0:
        raise ValueError(
            f"--epochs and --minutes must be above 0; got "
            f"{epochs if epochs is not None else minutes:g}"
        )
