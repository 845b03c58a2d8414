"""Files that change while they are read, and the converted form of a CSV file."""

import os
import shutil

import numpy as np
import pytest

from tbptt.data import DataUnavailable, SourceChanged, open_source
from tbptt.data.tables import convert as table_convert
from tbptt.data.tables import sources as table_cache
from tests.support.table_files import ROWS, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tables"


def gone(path):
    path.unlink()


def shrunk(path):
    os.truncate(path, path.stat().st_size // 2)


def grown(path):
    with path.open("ab") as file:
        file.write(b"1,2,3\n")


def rewritten(path):
    data = path.read_bytes()
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))


def replaced(path):
    before, other = path.stat(), path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize("name", ["c.npy", "x.csv", "x.parquet"])
@pytest.mark.parametrize("fault", [gone, shrunk, grown, rewritten, replaced])
def test_a_file_that_changes_while_it_is_read(fault, name, tmp_path):
    path = write(tmp_path / name)
    source = open_source(path)
    source.read(0, 900)
    fault(path)
    message = {gone: "disappeared", shrunk: "shrank from", grown: "grew from"}.get(
        fault, "was replaced"
    )
    with pytest.raises(SourceChanged, match=f"{name} {message}"):
        source.read(900, 1000)


def test_csv_is_converted_once_and_again_when_it_changes(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "x.csv")
    open_source(path)
    (made,) = cache.iterdir()
    monkeypatch.setattr(table_cache, "convert", None)  # must not be called
    np.testing.assert_array_equal(open_source(path).read(0, 1000), ROWS)
    monkeypatch.undo()
    monkeypatch.setenv("TBPTT_DATA", str(cache.parent))
    write(path, ROWS[:500])
    assert open_source(path).lengths == (500,)
    (fresh,) = cache.iterdir()  # the conversion of the file as it was before is gone
    assert fresh != made
    source = open_source(path, ("a",))
    assert len(list(cache.iterdir())) == 2, "other columns, another conversion"
    for made in cache.iterdir():
        shutil.rmtree(made)
    with pytest.raises(
        SourceChanged, match="the converted form of .*x.csv, is gone. Resume the run"
    ):
        source.read(0, 10)


def test_a_failed_conversion_leaves_no_table(tmp_path, cache, monkeypatch):
    path, add = write(tmp_path / "x.csv"), table_convert._Arrays.add

    def failing(*args):
        add(*args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_convert._Arrays, "add", failing)
    with pytest.raises(
        DataUnavailable,
        match="x.csv could not be converted into .*No space left.*Free disk.*TBPTT_DATA",
    ):
        open_source(path)
    assert not list(cache.iterdir())
    monkeypatch.setattr(table_convert._Arrays, "add", add)
    np.testing.assert_array_equal(open_source(path).read(0, 1000), ROWS)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "file"))
    with pytest.raises(DataUnavailable, match="set TBPTT_DATA"):
        open_source(path)
