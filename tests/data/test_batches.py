"""Forecasts, symbols, labels, views and statistics of a source equal plain loops."""

import numpy as np
import pytest

from tbptt.data import (
    BadSample,
    RecordingStream,
    TableWarning,
    Vocabulary,
    count_bad,
    count_classes,
    count_symbols,
    forecast_batches,
    forecast_pairs,
    label_batches,
    masking_bad,
    open_source,
    open_text,
    part,
    standardise,
    standardised,
    stream_scaling,
    symbol_batches,
    whole_recordings,
    without,
)
from tbptt.data.tables import bad_samples
from tbptt.data.tables import convert as table_convert

ROWS = np.random.default_rng(0).normal(size=(60, 3)) * [1, 10, 0.1] + [0, 1e4, 5]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path):
    for name, (a, b) in {"a": (0, 25), "b": (25, 28), "c": (28, 60)}.items():
        np.save(tmp_path / f"{name}.npy", ROWS[a:b])
    return open_source(sorted(tmp_path.glob("*.npy")), dtype=np.float64)


def read_all(stream, column=0):
    """Return one stream as one batch, without padding."""
    batches = [stream.chunk(i).batch for i in range(len(stream))]
    n = stream.steps[column]
    return type(batches[0])(
        *[
            None if parts[0] is None else np.concatenate(parts)[:n, column]
            for parts in zip(*batches, strict=True)
        ]
    )


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
@pytest.mark.parametrize("horizons", [(1,), (4, 2)])
def test_forecasts_equal_the_pairs_of_each_recording(chunk, horizons, source):
    got = read_all(RecordingStream(source, 1, chunk, forecast_batches("1", horizons)))
    np.testing.assert_array_equal(got.inputs, ROWS)
    for a, b in [(0, 25), (25, 28), (28, 60)]:
        n = max(0, b - a - max(horizons))
        np.testing.assert_array_equal(got.weights[a:b], np.arange(b - a) < n)
        assert not got.targets[a + n : b].any()
        if n:
            np.testing.assert_array_equal(
                got.targets[a : a + n], forecast_pairs(ROWS[a:b], 1, horizons)[1]
            )


def test_a_forecast_may_use_rows_beyond_its_stream_but_not_beyond_its_part(source):
    stream = RecordingStream(part(source, 0, 20), 2, 5, forecast_batches("0", (3,)))
    first, second = read_all(stream, 0), read_all(stream, 1)
    np.testing.assert_array_equal(first.targets[:, 0], ROWS[3:13, 0])
    np.testing.assert_array_equal(second.weights, [1] * 7 + [0] * 3)
    np.testing.assert_array_equal(first.weights, 1)


def test_chosen_inputs_and_the_target_of_the_same_row(source):
    make = forecast_batches("1", (0, 2), inputs=("2", "0"))
    got = read_all(RecordingStream(source, 1, 7, make))
    np.testing.assert_array_equal(got.inputs, ROWS[:, [2, 0]])
    for a, b in [(0, 25), (25, 28), (28, 60)]:
        np.testing.assert_array_equal(got.weights[a:b], np.arange(b - a) < b - a - 2)
        np.testing.assert_array_equal(got.targets[a : b - 2, 0], ROWS[a : b - 2, 1])
        np.testing.assert_array_equal(got.targets[a : b - 2, 1], ROWS[a + 2 : b, 1])
    with pytest.raises(ValueError, match="horizons"):  # the target would be an input
        forecast_batches("1", (0,), inputs=("1", "0"))
    with pytest.raises(ValueError, match="inputs must be a column of the source, 0, 1, 2; got '5'"):
        RecordingStream(source, 1, 4, forecast_batches("1", (1,), inputs=("5",)))


def test_forecast_errors(source):
    for horizons, error in [((), ValueError), ((0,), ValueError), ((1.5,), TypeError)]:
        with pytest.raises(error, match="horizons"):
            forecast_batches("0", horizons)
    with pytest.raises(ValueError, match="target must be a column of the source, 0, 1, 2; got 'x'"):
        RecordingStream(source, 1, 4, forecast_batches("x", (1,)))


def test_symbols_of_a_text(tmp_path):
    texts = ["Grüße, hello\n", "ab"]
    paths = [tmp_path / "0.txt", tmp_path / "1.txt"]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    data = [text.encode() for text in texts]
    source = open_text(paths)
    assert source.lengths == tuple(map(len, data)) and source.read(0, 3).dtype == np.uint8
    vocabulary = count_symbols(source, block=4)
    assert vocabulary == Vocabulary(bytes(sorted(set(b"".join(data)))))
    np.testing.assert_array_equal(
        vocabulary.encode(data[1]), [vocabulary.symbols.index(b) for b in data[1]]
    )
    got = read_all(RecordingStream(source, 1, 4, symbol_batches(vocabulary)))
    assert vocabulary.decode(got.inputs) == "".join(texts) and got.inputs.dtype == np.int32
    scored = np.ones(len(got.weights))
    scored[[len(data[0]) - 1, -1]] = 0
    np.testing.assert_array_equal(got.weights, scored)
    np.testing.assert_array_equal(
        got.targets[:-1][scored[:-1] > 0], got.inputs[1:][scored[:-1] > 0]
    )
    train = count_symbols(part(source, 0, 4))  # G r and the two bytes of a letter
    assert train.symbols == bytes(sorted("Grü".encode()))
    with pytest.raises(
        BadSample,
        match=r"0.txt, byte 4 \(from 0\) is b'\\xc3'|0.txt, byte 5 \(from 0\) is b'\\x9f'",
    ):
        RecordingStream(source, 1, 4, symbol_batches(train)).chunk(1)
    with pytest.raises(
        BadSample, match="byte 2 of the text is b'!', a symbol that is not in the vocabulary"
    ):
        vocabulary.encode(b"ab!")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="empty.txt is empty"):
        open_text(tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError, match="no file .*none.txt"):
        open_text(tmp_path / "none.txt")
    paths[0].write_text("shorter")
    with pytest.raises(OSError, match=r"0.txt (ended early|shrank)"):
        source.read(0, 10)


@pytest.fixture
def labelled(tmp_path):
    """Save five concatenated recordings: their number, a value, a label of 3 or 7."""
    lengths, labels = (4, 1, 6, 2, 5), (7, 3, 3, 7, 3)
    number = np.repeat(np.arange(5), lengths)
    rows = np.stack([number, np.arange(18) / 10, np.repeat(labels, lengths)], axis=1)
    np.save(tmp_path / "l.npy", rows)
    return lengths, labels, rows, tmp_path / "l.npy"


@pytest.mark.parametrize("block", [1, 4, 7, 100])
def test_groups_split_where_the_number_of_the_recording_changes(block, labelled, monkeypatch):
    monkeypatch.setattr(table_convert, "BLOCK", block)
    lengths, _, rows, path = labelled
    assert open_source(path, group="0").lengths == lengths
    # one number on both sides of a file boundary: two recordings
    again = open_source([path, path], group="0")
    assert part(again, 13, 31).lengths == (5, 4, 1, 6, 2)
    assert part(again, 17, 18).lengths == (1,)
    cut = open_source(path, group="0")
    assert cut.names == ("1", "2") and cut.lengths == lengths
    np.testing.assert_array_equal(cut.read(3, 9), rows[3:9, 1:].astype(np.float32))


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_one_label_per_recording_scored_at_its_last_step(chunk, labelled):
    lengths, labels, rows, path = labelled
    source = open_source(path, group="0")
    assert count_classes(source, "2") == (3.0, 7.0)
    stream = RecordingStream(source, 2, chunk, label_batches("2", (3, 7)), layout=whole_recordings)
    seen = []
    for spans, got in zip(
        whole_recordings(lengths, 2), (read_all(stream, 0), read_all(stream, 1)), strict=True
    ):
        assert got.inputs.shape[1:] == (1,) and got.targets.dtype == np.int32
        where = np.concatenate([np.arange(span.start, span.stop) for span in spans])
        np.testing.assert_array_equal(got.inputs, rows[where, 1:2].astype(np.float32))
        np.testing.assert_array_equal(got.targets, rows[where, 2] == 7)
        np.testing.assert_array_equal(got.weights, np.isin(where, np.cumsum(lengths) - 1))
        seen += got.targets[got.weights > 0].tolist()
    assert sorted(seen) == sorted(int(label == 7) for label in labels)


def test_a_changing_or_unknown_label_is_reported(labelled, tmp_path):
    *_, rows, path = labelled
    source = open_source(path, group="0")
    stream = RecordingStream(source, 1, 64, label_batches("2", (7, 8)), layout=whole_recordings)
    with pytest.raises(
        BadSample, match=r"l.npy, row 4 .*column '2' is 3, which is not one of the classes \(7, 8\)"
    ):
        stream.chunk(0)
    rows[7, 2] = 7
    np.save(tmp_path / "changed.npy", rows)
    source = open_source(tmp_path / "changed.npy", group="0")
    stream = RecordingStream(source, 1, 3, label_batches("2", (3, 7)), layout=whole_recordings)
    stream.chunk(1)
    with pytest.raises(
        BadSample, match="changed.npy, row 7 .*column '2' is 7, but 3 at the start of the recording"
    ):
        stream.chunk(2)
    for classes in ((1,), (1, 1)):
        with pytest.raises(ValueError, match="at least two different"):
            label_batches("2", classes)
    with pytest.raises(ValueError, match="label must be a column"):
        count_classes(source, "label")


@pytest.mark.parametrize("search", [1, 2, 100])
def test_labels_of_a_masked_recording_are_scored_at_its_last_unmasked_step(
    search, tmp_path, monkeypatch
):
    monkeypatch.setattr(bad_samples, "SEARCH", search)
    rows = np.array(
        [[1.0, 3], [np.nan, 3], [2, 3], [3, np.nan], [4, 5], [np.inf, 5], [np.nan, 3], [6, 3]]
    )
    for name, (a, b) in {"0": (0, 4), "1": (4, 6), "2": (6, 8)}.items():
        np.save(tmp_path / f"{name}.npy", rows[a:b])
    source = masking_bad(open_source(sorted(tmp_path.glob("*.npy"))))
    got = read_all(
        RecordingStream(
            source, 1, 2, label_batches("1", count_classes(source, "1")), layout=whole_recordings
        )
    )
    np.testing.assert_array_equal(got.mask, [1, 0, 1, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(got.weights, [0, 0, 1, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(got.targets, [0, 0, 0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(got.resets, [1, 0, 0, 0, 1, 0, 0, 1])
    assert np.isfinite(got.inputs).all()


def test_bad_rows_are_counted(tmp_path):
    rows = ROWS.copy()
    rows[[3, 50], 1] = np.nan
    rows[50, 2] = np.inf
    np.save(tmp_path / "x.npy", rows)
    source = open_source(tmp_path / "x.npy")
    for view, block in ((source, 7), (masking_bad(source), 100), (part(source, 1, 60), 1)):
        found = count_bad(view, block)
        assert (found.rows, found.columns) == (2, {"0": 0, "1": 2, "2": 1})
        assert found.first == f"{tmp_path / 'x.npy'}, row 3 (from 0)"
    assert count_bad(part(source, 4, 50)).first is None
    np.testing.assert_array_equal(
        masking_bad(source).read(50, 52), np.float32([[0, 0, 0], rows[51]])
    )
    with pytest.raises(TypeError, match="masking_bad takes a source from open_source"):
        masking_bad(standardised(source, stream_scaling(part(source, 4, 50))))


@pytest.mark.parametrize("block", [1, 7, 60, 1000])
def test_scaling_in_blocks_equals_scaling_of_the_whole(block, source):
    train = part(source, 0, 41)
    scaling = stream_scaling(train, block=block)
    scaled, wanted = standardise(ROWS, 41)
    np.testing.assert_allclose(scaling.mean, wanted.mean, rtol=1e-14)
    np.testing.assert_allclose(scaling.scale, wanted.scale, rtol=1e-13)
    np.testing.assert_allclose(
        standardised(source, scaling).read(20, 60), scaled[20:], rtol=1e-9, atol=1e-12
    )
    kept = stream_scaling(train, keep=("1",), block=block)
    assert (kept.mean[1], kept.scale[1]) == (0, 1) and kept.scale[0] == scaling.scale[0]


def test_scaling_is_accurate_for_a_large_offset(tmp_path):
    """Use times since 1970 in milliseconds, for which a sum of squares would lose every digit."""
    times = 1.7e12 + np.arange(10_000.0)
    np.save(tmp_path / "t.npy", times)
    scaling = stream_scaling(open_source(tmp_path / "t.npy", dtype=np.float64), block=100)
    np.testing.assert_allclose(scaling.scale, np.sqrt((10_000**2 - 1) / 12), rtol=1e-12)


def test_scaling_of_masked_sources_and_errors(tmp_path, source):
    rows = ROWS.copy()
    rows[::3, 0] = np.nan
    np.save(tmp_path / "x.npy", rows)
    masked = masking_bad(open_source(tmp_path / "x.npy", dtype=np.float64))
    scaling = stream_scaling(masked, block=8)
    good = np.delete(ROWS, np.s_[::3], axis=0)
    np.testing.assert_allclose(scaling.mean, good.mean(axis=0), rtol=1e-14)
    view = standardised(masked, scaling)
    np.testing.assert_array_equal(view.read(0, 6)[::3], 0)
    np.testing.assert_array_equal(view.good(0, 6), [0, 1, 1, 0, 1, 1])
    np.save(tmp_path / "c.npy", np.full((9, 2), 0.1))
    with pytest.raises(
        ValueError, match=r"column '0' is constant \(0.1\) over the training part.*`constant`"
    ):
        stream_scaling(open_source(tmp_path / "c.npy"), keep=("1",))
    with pytest.warns(TableWarning, match=r"column '0' is constant \(0.1\).*its scale is set to 1"):
        flat = stream_scaling(open_source(tmp_path / "c.npy"), keep=("1",), constant=("0",))
    assert flat.mean.tolist() == [pytest.approx(0.1), 0] and flat.scale.tolist() == [1, 1]
    np.save(tmp_path / "n.npy", np.full((9, 2), np.nan))
    with pytest.raises(ValueError, match="all 9 rows of the source are masked"):
        stream_scaling(masking_bad(open_source(tmp_path / "n.npy")))
    with pytest.raises(BadSample):
        stream_scaling(open_source(tmp_path / "n.npy"))
    with pytest.raises(ValueError, match="keep must name columns of the source, 0, 1, 2; got 'x'"):
        stream_scaling(source, keep=("x",))
    with pytest.raises(ValueError, match="for the 3 columns"):
        standardised(source, scaling._replace(mean=np.zeros(2)))


def test_parts_and_columns(source, tmp_path):
    assert part(source, 20, 30).lengths == (5, 3, 2)
    np.testing.assert_array_equal(part(source, 20, 30).read(4, 9), ROWS[24:29])
    assert part(source, 20, 30).path_of(5).endswith("b.npy, row 0 (from 0)")
    np.testing.assert_array_equal(without(source, ("1",)).read(24, 29), ROWS[24:29][:, [0, 2]])
    for call, error, message in [
        (lambda: part(source, 5, 5), ValueError, "0 <= start < stop <= 60"),
        (lambda: part(source, 0, 61), ValueError, "start=0, stop=61"),
        (lambda: part(source, 20, 30).read(0, 11), IndexError, "10 rows of this part"),
        (lambda: without(source, ("0", "1", "2")), ValueError, "leave at least one"),
        (lambda: without(source, ("x",)), ValueError, "got 'x'"),
        (lambda: without(source, "0"), TypeError, "Write"),
        (lambda: open_source(tmp_path / "a.npy", group="x"), ValueError, "no column 'x'"),
    ]:
        with pytest.raises(error, match=message):
            call()
