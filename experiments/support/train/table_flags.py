"""The flags that determine how tables are read."""

from typing import Any, NamedTuple


class TableFlags(NamedTuple):
    """Arguments of `open_source` that are flags of experiments.train and experiments.predict."""

    time: str | None = None
    group: str | tuple[str, ...] | None = None
    missing: Any = "refuse"
    gaps: Any = "keep"
    sort: bool = False

    @classmethod
    def of(cls, config: Any) -> "TableFlags":
        """Return the flags of a run; flags that an older config.json lacks have their defaults."""
        get = config.get if isinstance(config, dict) else lambda *args: getattr(config, *args)
        return cls(**{name: get(name, default) for name, default in cls()._asdict().items()})
