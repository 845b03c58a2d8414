"""Write TensorBoard event files; requires tensorboardX."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventFiles:
    """Writer of TensorBoard scalars; a resumed run hides the steps that it will write again.

    Raises:
        ImportError: the extra is not installed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "tensorboard=True (--tensorboard) needs the package tensorboardX: pip install "
                "tensorboardX, or omit it: metrics.jsonl contains the same numbers"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def add(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Add the numbers among the values as `group/name` at a step."""
        for name, value in values.items():
            if isinstance(value, int | float) and name not in ("step", "updates"):
                self._writer.add_scalar(f"{group}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
