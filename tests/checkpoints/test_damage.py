"""Damaged checkpoints are skipped, and errors of the disk leave the earlier ones intact."""

import os
import re
import resource
import signal
import time
import warnings

import pytest

from tbptt.checkpoints import (
    CheckpointDamaged,
    CheckpointNotWritten,
    Checkpoints,
    FolderInUse,
    finished,
    newest_good,
)
from tbptt.checkpoints import format as checkpoint_format
from tbptt.checkpoints.manager import FolderLock
from tests.support.damage import cut, flip
from tests.support.saved_states import CONFIG, saved, state_of

DAMAGES = {
    "cut": (cut, "has .* bytes"),
    "flipped": (flip, "other bytes"),
    "missing": (os.unlink, "is missing"),
}


def test_damage_to_any_file_is_detected_and_the_previous_checkpoint_is_used(tmp_path):
    old, new = saved(tmp_path, 1, 2)
    files = sorted(file for file in new.rglob("*") if file.is_file())
    assert {"metadata.json", "digests.json"} < {file.name for file in files} and len(files) >= 5
    for i, file in enumerate(files):
        # Every damage to the files of this project, one in turn to those of orbax
        own = file.parent == new
        for damage, why in DAMAGES.values() if own else [list(DAMAGES.values())[i % len(DAMAGES)]]:
            whole = file.read_bytes()
            if not whole and damage is not os.unlink:
                continue
            damage(file)
            with pytest.warns(UserWarning, match="damaged") as seen:
                assert newest_good(tmp_path, state_of(), CONFIG).step == 1
            assert (
                len(seen) == 1
                and str(new) in str(seen[0].message)
                and file.name in str(seen[0].message)
            )
            if file.name != "digests.json":
                assert re.search(why, str(seen[0].message))
            file.write_bytes(whole)
    assert newest_good(tmp_path, state_of(), CONFIG).step == 2
    (new / "more").write_text("x")
    with pytest.warns(UserWarning, match="more is not part of the checkpoint"):
        assert newest_good(tmp_path, state_of(), CONFIG).step == 1
    flip(old / "metadata.json")
    with (
        pytest.warns(UserWarning, match="skipping a damaged checkpoint"),
        pytest.raises(CheckpointDamaged, match="none of the 2 checkpoints .* is intact"),
    ):
        newest_good(tmp_path, state_of(), CONFIG)


def test_best_skips_a_damaged_checkpoint(tmp_path):
    best = saved(tmp_path, 1, 2, 3, metrics=[1.0, 2.0, 3.0])[0]
    cut(
        next(file for file in (best / "state").rglob("*") if file.is_file() and file.stat().st_size)
    )
    with Checkpoints(tmp_path, CONFIG) as checkpoints, pytest.warns(UserWarning, match=best.name):
        assert checkpoints.best(state_of()).step == 2


def test_a_full_disk_is_an_error_and_earlier_checkpoints_are_unchanged(tmp_path):
    saved(tmp_path, 1)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Writes beyond the limit fail, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))
        try:
            with pytest.raises(CheckpointNotWritten) as error:
                checkpoints.save(2, state_of(2), 2)
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        message = str(error.value)
        assert f"step 2 in {tmp_path}" in message and "space" in message
        assert "unchanged: step_000000001." in message
        assert checkpoints.newest_good(state_of()).step == 1
        checkpoints.save(3, state_of(3), 3)  # saving works again when there is space
    assert [path.name for path in finished(tmp_path)] == ["step_000000001", "step_000000003"]
    assert not list(tmp_path.glob("unfinished*"))


def test_a_failure_in_the_background_is_raised_by_the_next_call(tmp_path, monkeypatch):
    def full_disk(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_format, "write_digests", full_disk)
    checkpoints = Checkpoints(tmp_path, CONFIG)
    checkpoints.save(1, state_of(), 1)
    with pytest.raises(
        CheckpointNotWritten, match="No space left on device. There is no earlier checkpoint"
    ):
        checkpoints.save(2, state_of(), 2)
    checkpoints.close()
    assert finished(tmp_path) == [] and [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_an_unwritable_folder_is_reported_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointNotWritten,
        match=f"cannot write in the folder {tmp_path}/file/runs: .*Choose another",
    ):
        Checkpoints(tmp_path / "file" / "runs", {})


def test_the_remains_of_a_killed_process_are_cleared(tmp_path):
    held, hold = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jax warns of a fork, which here uses no jax
        other = os.fork()
    if not other:
        try:
            lock = FolderLock(tmp_path)
            os.write(hold, b"held")
            time.sleep(60)
            del lock
        finally:
            os._exit(1)
    try:
        assert os.read(held, 4) == b"held"
        with pytest.raises(
            FolderInUse, match=f"{tmp_path} is in use by another run: process {other} on "
        ):
            Checkpoints(tmp_path, CONFIG)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        os.close(held)
        os.close(hold)
    # An unfinished save, and an unfinished replacement.
    for name in ("unfinished_step_000000009", "replaced_step_000000008"):
        (tmp_path / name).mkdir()
    saved(tmp_path, 1, 2)
    assert {path.name for path in tmp_path.iterdir()} == {
        "lock",
        "step_000000001",
        "step_000000002",
        "step_000000008",
    }
