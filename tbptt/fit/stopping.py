"""Catch SIGTERM and SIGINT, so that a loop can stop after its current update."""

import os
import signal
from types import FrameType, TracebackType

STDERR = 2  # sys.stderr has no file number in some notebooks
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stop:
    """Context manager that catches SIGTERM and SIGINT; a second signal ends the process at once.

    signal: number of the signal that was received, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._catch) for number in NAMES}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    @property
    def name(self) -> str:
        """Name of the signal; "" if none was received."""
        return (
            NAMES.get(signal.Signals(self.signal), str(self.signal))
            if self.signal is not None
            else ""
        )

    @property
    def status(self) -> int:
        """Exit status by the convention of shells: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self.signal or 0)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        # Checkpoints are written atomically, so none is left incomplete.
        if self.signal is not None:
            os.write(STDERR, b"\nStopped at once; the last complete checkpoint remains.\n")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal = number
        name = NAMES[signal.Signals(number)]
        text = f"\n{name}: finishing this update and its checkpoint. Repeat to stop at once.\n"
        os.write(STDERR, text.encode())
