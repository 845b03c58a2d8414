"""What a checkpoint says of itself, as JSON beside its arrays, and whether that is what is wanted."""

import json
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tbptt.checkpoints.errors import CheckpointDamaged, CheckpointMismatch
from tbptt.checkpoints.leaves import Shapes, difference

NAME = "about.json"
FORMAT = 1  # of the folder; another one is read by another version
ABSENT = "absent"


class About(NamedTuple):
    """step, position, metric, config: as `Checkpoints` was told; leaves: names and shapes, in the order of the arrays."""

    format: int
    tbptt: str
    jax: str
    step: int
    position: Any
    metric: float | None
    config: dict[str, Any]
    leaves: Shapes


def about_now(step: int, position: Any, metric: float | None, config: dict[str, Any], shapes: Shapes) -> About:
    """Fills in the versions."""
    return About(FORMAT, library_version(), jax.__version__, step, position, metric, config, shapes)


def library_version() -> str:
    """Returns the version of this library, as its front door has it."""
    try:
        return version("tbptt")
    except PackageNotFoundError:  # a checkout that was not installed
        return "0+unknown"


def read_about(path: Path) -> About:
    """Reads what a checkpoint says of itself; a CheckpointDamaged if it cannot be read."""
    try:
        found = json.loads((path / NAME).read_text())
        return About(**{name: found.get(name) for name in About._fields})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointDamaged(f"{path}: the file {NAME} cannot be read ({error})") from error


def check(about: About, path: Path, wanted: Shapes, config: Mapping[str, Any] | None, under: str) -> None:
    """Raises a CheckpointMismatch that names the first thing in which a checkpoint is not what is wanted.

    Another jax is no mismatch: the run goes on, with a warning that its roundings may differ.
    """
    for name, saved, here in (("format", about.format, FORMAT), ("tbptt", about.tbptt, library_version())):
        if saved != here:
            raise CheckpointMismatch(
                f"{path} was written by another version: its {name} is {saved}, here it is {here}. Go on with that one, "
                "or start anew in another folder"
            )
    fields = [] if config is None else config_differences(about.config, config)
    if fields:
        name, saved, here = fields[0]
        more = f" (and {len(fields) - 1} more: {', '.join(name for name, _, _ in fields[1:])})" if fields[1:] else ""
        raise CheckpointMismatch(
            f"{path} is of another run: its {name} is {saved}, here it is {here}{more}. Go on with its own settings, or "
            "start anew in another folder"
        )
    saved_leaves = {name: shape for name, shape in about.leaves.items() if name.startswith(under)}
    found = difference(saved_leaves, wanted)
    if found is not None:
        raise CheckpointMismatch(f"{path} is of another model, optimizer or estimator: {found}")
    if about.jax != jax.__version__:
        warnings.warn(
            f"{path} was written under jax {about.jax}, this is {jax.__version__}: it goes on, roundings may differ",
            stacklevel=5,
        )


def config_differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Lists (field, saved, here) of all fields that differ, dotted names within nested ones, compared as JSON has them."""
    a, b = (_flat(json.loads(json.dumps(config))) for config in (saved, here))
    return [
        (name, a.get(name, ABSENT), b.get(name, ABSENT))
        for name in {**a, **b}
        if a.get(name, ABSENT) != b.get(name, ABSENT)
    ]


def _flat(config: Any, name: str = "config") -> dict[str, Any]:
    if isinstance(config, dict) and config:
        return {key: value for field, inner in config.items() for key, value in _flat(inner, f"{name}.{field}").items()}
    return {name: config}
