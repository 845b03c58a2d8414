"""Count the programs that each test compiles: their number decides how long the suite takes."""

import collections
import dataclasses

import jax


@dataclasses.dataclass
class Counter:
    """compiled: programs that XLA compiled; loaded: from the cache; by_test: both, by test."""

    compiled: int = 0
    loaded: int = 0
    by_test: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    test: str = "collection"

    def start(self) -> None:
        """Listen to jax, which reports every program as compiled, and cache hits in addition."""
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)

    def _on_duration(self, event: str, duration: float, **_: object) -> None:
        del duration
        if event == "/jax/core/compile/backend_compile_duration":
            self.compiled += 1
            self.by_test[self.test] += 1

    def _on_event(self, event: str, **_: object) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            self.loaded += 1
            self.compiled -= 1

    def dump(self) -> dict[str, object]:
        """Return plain data for another process."""
        return {"compiled": self.compiled, "loaded": self.loaded, "by_test": dict(self.by_test)}

    def add(self, dumped: dict[str, object]) -> None:
        """Add what another process counted."""
        self.compiled += dumped["compiled"]
        self.loaded += dumped["loaded"]
        self.by_test.update(dumped["by_test"])
