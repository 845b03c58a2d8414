"""The checkpoints of one run: saved in the background, the newest few and the best kept, one run a folder."""

import contextlib
import json
import math
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from tbptt.checkpoints import about as about_file
from tbptt.checkpoints import leaves, manifest
from tbptt.checkpoints import restore as reading
from tbptt.checkpoints.errors import CheckpointDamaged, CheckpointNotWritten
from tbptt.checkpoints.lock import FolderLock
from tbptt.checkpoints.restore import PREFIX, STATE, Restored, finished

UNFINISHED, REPLACED = "unfinished_", "replaced_"


class Checkpoints:
    """Saves the whole state of a run, asynchronously and atomically; a context manager.

        with Checkpoints(folder, config) as checkpoints:
            found = checkpoints.newest_good(state)                    # None in an empty folder
            state, position = (found.state, found.position) if found else (state, 0)
            for position, chunk in read_ahead(stream, position):
                state, metrics = step(state, chunk.batch)
                if due: checkpoints.save(int(state.step), state, position + 1)

    A checkpoint is a folder `step_N` of arrays (written by orbax), `about.json` and, written last, `digests.json` with the
    SHA-256 of every file. It is made under another name and renamed when all of it is on the disk: a process that dies
    leaves whole checkpoints only. Nothing in it is a pickle. Several processes save together, on a disk that all see;
    each writes its own part of the arrays, the first one the rest.

    Args:
      folder: of this run alone; made if it is not there.
      config: what must be the same for the run to go on, as JSON would have it: a checkpoint with another is refused.
      keep: static int >= 1, how many of the newest are kept. The one with the lowest metric is kept besides.

    Raises:
      FolderInUse: another living process has the folder. CheckpointNotWritten: it cannot be written.
      ValueError: keep < 1. TypeError: config is no JSON.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], keep: int = 3):
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep must be how many checkpoints are kept, an int >= 1; got {keep!r}")
        self.folder, self.config, self._keep = Path(folder).absolute(), json.loads(json.dumps(dict(config))), keep
        self._lock = FolderLock(self.folder) if jax.process_index() == 0 else None
        self._writer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        if self._lock is not None:
            self._clear_up()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(*() if error is None else (CheckpointNotWritten,)):  # what went wrong first is told
            self.close()

    def save(self, step: int, state: Any, position: Any, metric: float | None = None) -> None:
        """Takes a copy of the state and writes it in the background; waits for the checkpoint before, if there is need.

        Args:
          step: updates so far, int(state.step); one that is there already is replaced.
          state: a pytree of arrays and random keys, every leaf of which is kept, to the bit. It may be donated at once.
          position: where the stream goes on, as JSON; an int for a `RecordingStream`.
          metric: on held-out data, lower is better; None (or NaN) is never the best.

        Raises:
          CheckpointNotWritten: this one, or the one before it, could not be written; those before are as they were.
        """
        self.wait()
        named = leaves.named(state)
        shapes = {name: leaves.shape_of(leaf) for name, leaf in named.items()}
        metric = None if metric is None or not math.isfinite(metric) else float(metric)
        about = about_file.about_now(int(step), position, metric, self.config, shapes)
        aside = self.folder / f"{UNFINISHED}{PREFIX}{int(step):09d}"
        try:
            if jax.process_index() == 0:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                (aside / about_file.NAME).write_text(json.dumps(about._asdict(), indent=1, allow_nan=False))
            item = {f"leaf_{i}": leaves.copied(leaf) for i, leaf in enumerate(named.values()) if leaves.numbers_of(leaf)}
            self._writer.save(aside / STATE, args=ocp.args.PyTreeSave(item))
        except Exception as error:
            self._give_up(aside)
            raise self._not_written(step, error) from error
        self._thread = threading.Thread(target=self._finish, args=(int(step), aside), name="tbptt-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits until what was saved is on the disk; a CheckpointNotWritten if it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if jax.process_count() > 1:  # the first process gives the folder its name: no other may look for it before
                multihost_utils.sync_global_devices("tbptt-checkpoint")
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def newest_good(self, like: Any) -> Restored | None:
        """Restores the newest sound checkpoint of this config, see `tbptt.checkpoints.newest_good`."""
        self.wait()
        return reading.newest_good(self.folder, like, self.config)

    def best(self, like: Any) -> Restored | None:
        """Restores the sound checkpoint with the lowest metric, of equal ones the newest; None if none has one."""
        self.wait()
        return reading.first_good(_ranked(finished(self.folder)), self.folder, like, self.config, "")

    def close(self) -> None:
        """Waits, and lets the folder go; a CheckpointNotWritten as from `wait`."""
        try:
            self.wait()
        finally:
            self._writer.close()
            if self._lock is not None:
                self._lock.close()

    def _finish(self, step: int, aside: Path) -> None:
        """Runs in the background: waits for the arrays, seals, gives the folder its name, and removes what is old."""
        try:
            self._writer.wait_until_finished()
            if jax.process_index() == 0:
                manifest.seal(aside)
                final = self.folder / aside.name.removeprefix(UNFINISHED)
                if final.exists():  # the same step again: of a run that went back to an older checkpoint
                    final.rename(self.folder / f"{REPLACED}{final.name}")
                aside.rename(final)
                manifest.sync_folder(self.folder)
                self._remove_old()
        except Exception as error:
            self._give_up(aside)
            self._failure = self._not_written(step, error)

    def _clear_up(self) -> None:
        """Removes what a process that died has left behind; what it was about to replace is brought back."""
        for path in self.folder.glob(f"{REPLACED}*"):
            final = self.folder / path.name.removeprefix(REPLACED)
            if not final.exists():
                path.rename(final)
        for path in (*self.folder.glob(f"{REPLACED}*"), *self.folder.glob(f"{UNFINISHED}*")):
            shutil.rmtree(path, ignore_errors=True)

    def _remove_old(self) -> None:
        there = finished(self.folder)
        kept = {*there[-self._keep :], *_ranked(there)[:1]}
        for path in there:
            if path not in kept:  # renamed first: a process that dies while it deletes leaves no half of a checkpoint
                path.rename(self.folder / f"{UNFINISHED}{path.name}")
        self._clear_up()

    def _give_up(self, aside: Path) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)

    def _not_written(self, step: int, error: BaseException) -> CheckpointNotWritten:
        there = [path.name for path in finished(self.folder)] if self.folder.is_dir() else []
        kept = f"{', '.join(there)} stay as they are" if there else "there is none before it"
        return CheckpointNotWritten(
            f"cannot write the checkpoint of step {step} in {self.folder}: {error}. {kept}. Free some space, or make the "
            "folder writable"
        )


def _ranked(paths: list[Path]) -> list[Path]:
    """Sorts those that have a metric by it, of equal ones the newest first."""
    metrics = {path: metric for path in reversed(paths) if (metric := _metric(path)) is not None}
    return sorted(metrics, key=lambda path: metrics[path])


def _metric(path: Path) -> float | None:
    try:
        return about_file.read_about(path).metric
    except CheckpointDamaged:
        return None
