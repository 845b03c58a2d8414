"""Save the checkpoints of one run in the background; keep the newest few and the best."""

import contextlib
import fcntl
import json
import math
import os
import shutil
import socket
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from tbptt.checkpoints import format as checkpoint_format
from tbptt.checkpoints.format import CheckpointDamaged, CheckpointNotWritten, FolderInUse
from tbptt.checkpoints.quiet import quiet_orbax
from tbptt.checkpoints.restore import (
    PREFIX,
    STATE,
    UNFINISHED,
    Restored,
    finished,
    first_good,
    newest_good,
)

REPLACED = "replaced_"


class Checkpoints:
    """Save the whole state of a run, asynchronously and atomically; a context manager.

        with Checkpoints(folder, config) as checkpoints:
            found = checkpoints.newest_good(state)                    # None in an empty folder
            state, position = (found.state, found.position) if found else (state, 0)
            for position, chunk in read_ahead(stream, position):
                state, metrics = step(state, chunk.batch)
                if due: checkpoints.save(int(state.step), state, position + 1)

    A checkpoint is a folder `step_N` with the arrays (written by orbax), `metadata.json`, and
    `digests.json` with the SHA-256 of every file, which is written last. It is written under a
    temporary name and renamed when it is complete on disk, so a killed process leaves complete
    checkpoints only. It contains no pickle. Several processes save together to a shared disk:
    each writes its own shards of the arrays, and the first one writes the rest.

    Args:
      folder: used by this run alone; created if absent.
      config: settings that must be equal to resume, convertible to JSON; a checkpoint with other
        settings is rejected.
      keep: static int >= 1, number of newest checkpoints to keep, in addition to the one with
        the lowest metric.

    Raises:
      FolderInUse: another living process uses the folder.
      CheckpointNotWritten: the folder is not writable.
      ValueError: keep < 1.
      TypeError: config is not convertible to JSON.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], keep: int = 3):
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(
                f"keep must be the number of checkpoints to keep, an int >= 1; got {keep!r}"
            )
        self.folder, self._keep = Path(folder).absolute(), keep
        self.config = json.loads(json.dumps(dict(config)))
        self._lock = FolderLock(self.folder) if jax.process_index() == 0 else None
        self._writer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._quiet: contextlib.AbstractContextManager[None] | None = None
        if self._lock is not None:
            self._clear_up()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An earlier exception of the block takes precedence over a failed save.
        with contextlib.suppress(*() if error is None else (CheckpointNotWritten,)):
            self.close()

    def save(self, step: int, state: Any, position: Any, metric: float | None = None) -> None:
        """Copy the state and write it in the background, after waiting for the previous save.

        Args:
          step: number of updates so far, int(state.step); an existing checkpoint of it is replaced.
          state: a pytree of arrays and random keys, saved bit for bit. It may be donated at once.
          position: where the stream continues, convertible to JSON; an int for a `RecordingStream`.
          metric: value on held-out data, lower is better; None (or NaN) is never the best.

        Raises:
          CheckpointNotWritten: this save, or the previous one, failed; earlier checkpoints are
            unchanged.
        """
        self.wait()
        leaves = checkpoint_format.named_leaves(state)
        shapes = {name: checkpoint_format.leaf_shape(leaf) for name, leaf in leaves.items()}
        metric = None if metric is None or not math.isfinite(metric) else float(metric)
        metadata = checkpoint_format.make_metadata(int(step), position, metric, self.config, shapes)
        temporary = self.folder / f"{UNFINISHED}{PREFIX}{int(step):09d}"
        if self._quiet is None:  # until `close`, because writes end after the one that failed
            self._quiet = quiet_orbax()
            self._quiet.__enter__()
        try:
            if jax.process_index() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                text = json.dumps(metadata._asdict(), indent=1, allow_nan=False)
                (temporary / checkpoint_format.METADATA).write_text(text)
            item = {
                f"leaf_{i}": checkpoint_format.copy_to_save(leaf)
                for i, leaf in enumerate(leaves.values())
                if checkpoint_format.leaf_size(leaf)
            }
            self._writer.save(temporary / STATE, args=ocp.args.PyTreeSave(item))
        except Exception as error:
            self._discard(temporary)
            raise self._not_written(step, error) from error
        self._thread = threading.Thread(
            target=self._finish, args=(int(step), temporary), name="tbptt-checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last save is on disk; raise its CheckpointNotWritten if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if jax.process_count() > 1:  # the first process renames the folder; the others wait
                multihost_utils.sync_global_devices("tbptt-checkpoint")
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def newest_good(self, like: Any) -> Restored | None:
        """Restore the newest intact checkpoint of this config; None if there is none."""
        self.wait()
        return newest_good(self.folder, like, self.config)

    def best(self, like: Any) -> Restored | None:
        """Restore the intact checkpoint with the lowest metric; None if no checkpoint has one.

        Of equal metrics, the newest counts.
        """
        self.wait()
        return first_good(_ranked(finished(self.folder)), self.folder, like, self.config, "")

    def close(self) -> None:
        """Wait for the last save, then release the folder; raise CheckpointNotWritten as `wait`."""
        try:
            self.wait()
        finally:
            self._writer.close()
            if self._quiet is not None:
                self._quiet.__exit__(None, None, None)
                self._quiet = None
            if self._lock is not None:
                self._lock.close()

    def _finish(self, step: int, temporary: Path) -> None:
        """Complete a save in the background: write digests, rename, and remove old checkpoints."""
        try:
            self._writer.wait_until_finished()
            if jax.process_index() == 0:
                checkpoint_format.write_digests(temporary)
                final = self.folder / temporary.name.removeprefix(UNFINISHED)
                if final.exists():  # the run went back to an older checkpoint
                    final.rename(self.folder / f"{REPLACED}{final.name}")
                temporary.rename(final)
                checkpoint_format.sync_folder(self.folder)
                self._remove_old()
        except Exception as error:
            self._discard(temporary)
            self._failure = self._not_written(step, error)

    def _clear_up(self) -> None:
        """Remove the remains of a killed process, and undo its unfinished replacement."""
        for path in self.folder.glob(f"{REPLACED}*"):
            final = self.folder / path.name.removeprefix(REPLACED)
            if not final.exists():
                path.rename(final)
        for path in (*self.folder.glob(f"{REPLACED}*"), *self.folder.glob(f"{UNFINISHED}*")):
            shutil.rmtree(path, ignore_errors=True)

    def _remove_old(self) -> None:
        paths = finished(self.folder)
        kept = {*paths[-self._keep :], *_ranked(paths)[:1]}
        for path in paths:
            if path not in kept:  # renamed first, so that a killed process leaves no partial folder
                path.rename(self.folder / f"{UNFINISHED}{path.name}")
        self._clear_up()

    def _discard(self, temporary: Path) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(temporary, ignore_errors=True)

    def _not_written(self, step: int, error: BaseException) -> CheckpointNotWritten:
        paths = finished(self.folder) if self.folder.is_dir() else []
        kept = "There is no earlier checkpoint"
        if paths:
            kept = f"Earlier checkpoints are unchanged: {', '.join(path.name for path in paths)}"
        return CheckpointNotWritten(
            f"cannot write the checkpoint of step {step} in {self.folder}: {error}. {kept}. Free "
            "disk space, or make the folder writable"
        )


def _ranked(paths: list[Path]) -> list[Path]:
    """Return the checkpoints with a metric, lowest first; of equal metrics, the newest first."""
    metrics = {path: metric for path in reversed(paths) if (metric := _metric(path)) is not None}
    return sorted(metrics, key=lambda path: metrics[path])


def _metric(path: Path) -> float | None:
    try:
        return checkpoint_format.read_metadata(path).metric
    except CheckpointDamaged:
        return None


class FolderLock:
    """Hold a lock on `folder/lock` until `close`, or until the process ends.

    The kernel holds the lock (`flock`); the file only describes the owner. A killed process
    leaves the file, but not the lock.

    Raises:
        FolderInUse: a living process holds it; the message gives process, machine and time.
        CheckpointNotWritten: the folder cannot be created or written.
    """

    def __init__(self, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointNotWritten(
                f"cannot write in the folder {folder}: {error.strerror}. Choose another folder, or "
                "make it writable"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(self._file, 500).decode(errors="replace").strip()
            owner = owner or "an unknown process"
            os.close(self._file)
            raise FolderInUse(
                f"{folder} is in use by another run: {owner}. Wait for it, stop it, or choose "
                "another folder"
            ) from error
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):  # on a full disk the lock has no description
            os.ftruncate(self._file, 0)
            owner = f"process {os.getpid()} on {socket.gethostname()}, since {now}\n"
            os.write(self._file, owner.encode())

    def close(self) -> None:
        """Release the lock."""
        os.close(self._file)
