"""SIGTERM and Ctrl-C as a question that the loop asks after every update: is it time to stop, and what for?"""

import os
import signal
import sys
from types import FrameType, TracebackType

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stop:
    """Catches SIGTERM and SIGINT while it is entered; the second one ends the process at once.

    asked: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._catch) for number in NAMES}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    @property
    def name(self) -> str:
        """What people call the signal."""
        return NAMES.get(signal.Signals(self.asked), str(self.asked)) if self.asked is not None else ""

    @property
    def status(self) -> int:
        """The exit status that a shell would show for it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self.asked or 0)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:  # a checkpoint is a whole folder or none: nothing is left half-written
            os.write(sys.stderr.fileno(), b"\nstopped at once; the last whole checkpoint stays\n")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.asked = number
        word = NAMES[signal.Signals(number)].encode()
        os.write(
            sys.stderr.fileno(), b"\n" + word + b": finishing this update and its checkpoint; once more to stop at once\n"
        )
