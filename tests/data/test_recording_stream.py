"""RecordingStream reads every row once and in order, with correct resets and gradients."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.data import (
    RecordingStream,
    Span,
    continuous,
    even_streams,
    forecast_batches,
    masking_bad,
    whole_recordings,
)
from tbptt.data.streams import recording_stream as recording_stream_module
from tbptt.types import Batch
from tests.support.counting_source import Counting, rows_only

LENGTHS = [(7, 1, 12, 3, 5), (40,), (1, 1, 1, 1), (3, 0, 9, 30, 2, 2)]
LAYOUTS = [
    (layout, streams) for layout in (even_streams, whole_recordings) for streams in (1, 2, 4)
]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("layout", "streams"), LAYOUTS)
@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_every_row_once_in_order_and_resets_where_recordings_start(lengths, layout, streams, chunk):
    if layout is whole_recordings and sum(n > 0 for n in lengths) < streams:
        message = f"streams={streams}, {len(lengths)} recordings. Use fewer streams, or split"
        with pytest.raises(ValueError, match=message):
            layout(lengths, streams)
        return
    stream = RecordingStream(Counting(lengths), streams, chunk, rows_only, layout=layout)
    batches = [stream.chunk(i).batch for i in range(len(stream))]
    assert all(
        batch.inputs.shape == (chunk, streams, 2) and batch.resets.shape == (chunk, streams)
        for batch in batches
    )
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    mask = np.ones(whole.resets.shape, bool) if whole.mask is None else whole.mask
    assert len(stream) * chunk - max(stream.steps) < chunk, "no chunk of padding only"
    begins = set(np.cumsum([0, *lengths])[:-1]) | {
        spans[0].start for spans in layout(lengths, streams)
    }
    seen = []
    for column in range(streams):
        n = stream.steps[column]
        assert mask[:n, column].all() and not mask[n:, column].any(), (
            "padding comes last, and only where there is no row"
        )
        assert not whole.inputs[n:, column].any() and not whole.resets[n:, column].any()
        rows = whole.inputs[:n, column, 0].astype(int)
        np.testing.assert_array_equal(whole.targets[:n, column], rows)
        np.testing.assert_array_equal(whole.resets[:n, column], np.isin(rows, list(begins)))
        after = ~whole.resets[1:n, column]
        np.testing.assert_array_equal(
            np.diff(rows)[after], 1, "rows of a recording follow each other"
        )
        seen += rows.tolist()
    assert sorted(seen) == list(range(sum(lengths)))


def optimal_longest_stream(lengths, streams):
    """Return the length of the longest stream in the best assignment of whole recordings."""
    ways = itertools.product(range(streams), repeat=len(lengths))
    return min(
        max(
            sum(n for n, column in zip(lengths, way, strict=True) if column == i)
            for i in range(streams)
        )
        for way in ways
    )


@pytest.mark.parametrize("seed", range(6))
def test_streams_have_nearly_equal_lengths(seed):
    lengths = np.random.default_rng(seed).integers(1, 30, 7).tolist()
    for streams in (2, 3):
        steps = [sum(s.stop - s.start for s in spans) for spans in even_streams(lengths, streams)]
        assert max(steps) - min(steps) <= 1
        longest = max(
            sum(s.stop - s.start for s in spans) for spans in whole_recordings(lengths, streams)
        )
        assert longest <= (4 / 3 - 1 / (3 * streams)) * optimal_longest_stream(
            lengths, streams
        )  # Graham's bound


def test_spans_give_the_edges_of_their_recording():
    assert even_streams((6, 4), 2) == ((Span(0, 5, 0, 6),), (Span(5, 6, 0, 6), Span(6, 10, 6, 10)))
    assert whole_recordings((2, 6, 3), 2) == (
        (Span(2, 8, 2, 8),),
        (Span(0, 2, 0, 2), Span(8, 11, 8, 11)),
    )


def test_a_chunk_depends_on_its_number_alone():
    stream, again = (RecordingStream(Counting((7, 20, 4)), 3, 4, rows_only) for _ in range(2))
    n = len(stream)
    forward = [stream.chunk(i) for i in range(2 * n)]
    for i in reversed(range(2 * n)):
        jax.tree.map(np.testing.assert_array_equal, again.chunk(i), forward[i])
        assert forward[i].start == 4 * i
        jax.tree.map(np.testing.assert_array_equal, forward[i].batch, forward[i % n].batch)
    assert len(list(continuous(forward))) == 2 * n, "passes follow each other"
    assert len(list(continuous(forward[2:], start=8))) == 2 * n - 2
    assert len(list(continuous([forward[n - 1], forward[0]], start=4 * (n - 1)))) == 2, (
        "every column starts with a reset"
    )
    with pytest.raises(tbptt.data.DiscontinuousFeed):
        list(continuous([forward[0], forward[2]]))


@pytest.mark.parametrize(
    ("steps", "size"), [(1, 1 << 22), (8, 1 << 22), (1000, 1 << 22), (1000, 200)]
)
def test_reading_chunks_in_blocks_changes_no_chunk_and_raises_no_early_error(
    steps, size, monkeypatch
):
    alone = RecordingStream(Counting((7, 20, 4)), 3, 2, rows_only)
    monkeypatch.setattr(recording_stream_module, "BLOCK_STEPS", steps)
    monkeypatch.setattr(recording_stream_module, "BLOCK_BYTES", size)
    calls = []

    def faulty(source, span):
        calls.append(span)
        if span.start <= 6 < span.stop:
            raise tbptt.data.BadSample("row 6 is bad")
        return rows_only(source, span)

    stream = RecordingStream(Counting((7, 20, 4)), 3, 2, faulty)
    for i in (0, 1, 2):  # row 6 is in chunk 3
        jax.tree.map(np.testing.assert_array_equal, stream.chunk(i), alone.chunk(i))
    with pytest.raises(tbptt.data.BadSample, match="row 6"):
        stream.chunk(3)
    stream.make_batch = lambda source, span: (calls.append(span), rows_only(source, span))[1]
    calls.clear()
    for i in (3, 4, 5, 0):
        chunk = stream.chunk(i)
        jax.tree.map(np.testing.assert_array_equal, chunk, alone.chunk(i))
        with pytest.raises(ValueError, match="read-only"):
            chunk.batch.inputs[:] = 0
    assert (len(calls) < 6) == (steps == 1000 and size > 200)


def test_hosts_read_their_own_streams():
    read = []

    class Recorded(Counting):
        def read(self, start, stop):
            read.append((start, stop))
            return super().read(start, stop)

    whole = RecordingStream(Counting((7, 20, 4)), 4, 3, rows_only)
    parts = [
        RecordingStream(Recorded((7, 20, 4)), 4, 3, rows_only, rows=rows)
        for rows in ((0, 1), (3, 2))
    ]
    assert [len(part) for part in parts] == [len(whole)] * 2
    read.clear()
    for i in range(len(whole)):
        theirs = [part.chunk(i).batch for part in parts]
        joined = jax.tree.map(lambda a, b: np.concatenate([a, b[:, ::-1]], axis=1), *theirs)
        jax.tree.map(np.testing.assert_array_equal, joined, whole.chunk(i).batch)
    rows = [row for start, stop in read for row in range(start, stop)]
    assert len(rows) == len(set(rows)) == 31, "no row is read twice"
    for rows in ((), (0, 0), (4,), (-1,)):
        with pytest.raises(ValueError, match="rows must be distinct streams, 0 .. 3"):
            RecordingStream(Counting((31,)), 4, 3, rows_only, rows=rows)


def test_there_is_no_mask_without_padding_and_all_chunks_have_one_structure():
    assert RecordingStream(Counting((24,)), 2, 4, rows_only).chunk(0).batch.mask is None
    for rows in ((0,), (1,)):  # stream 1 needs no mask, but all hosts need one structure
        stream = RecordingStream(Counting((23,)), 2, 12, rows_only, rows=rows)
        assert stream.steps == (11, 12) and all(
            stream.chunk(i).batch.mask is not None for i in range(len(stream))
        )


def test_masked_rows_have_mask_false_and_resets_move_to_the_first_unmasked_row():
    source = masking_bad(Counting((10, 10), bad=(0, 1, 2, 5, 10, 12)))
    stream = RecordingStream(source, 2, 2, forecast_batches("minus", (1,)))
    batches = [stream.chunk(i).batch for i in range(len(stream))]
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    for column, (bad, reset) in enumerate([((0, 1, 2, 5), 3), ((0, 2), 1)]):
        np.testing.assert_array_equal(np.flatnonzero(~whole.mask[:, column]), bad)
        np.testing.assert_array_equal(np.flatnonzero(whole.resets[:, column]), [reset])
        unscored = {b - 1 for b in bad if b} | {
            9
        }  # the next row is masked, or beyond the recording
        np.testing.assert_array_equal(
            np.flatnonzero(whole.weights[:, column] == 0), sorted(unscored)
        )
    assert np.isfinite(whole.inputs).all() and np.isfinite(whole.targets).all()
    scored = whole.weights > 0
    rows = np.arange(20).reshape(2, 10).T
    np.testing.assert_array_equal(whole.targets[scored][:, 0], -(rows[scored] + 1.0))
    assert len(list(continuous([stream.chunk(0), stream.chunk(1)]))) == 2


CELL, READOUT = tbptt.GRU(2, 4), nn.Dense(2, param_dtype=jnp.float64)
PARTS = (6, 2, 7, 4)  # lengths of the recordings


@functools.cache
def initial_params():
    return jax.jit(lambda key: tbptt.init_params(key, CELL, READOUT))(jax.random.key(3))


class Waves(Counting):
    def read(self, start, stop):
        rows = super().read(start, stop)
        return np.sin(rows * [0.7, 0.31] + [0.2, 1.0])


@functools.cache
def one_by_one():
    """Return the weighted mean loss of all recordings and its gradient, by a loop over steps."""
    source = Waves(PARTS)

    def mean_loss(params):
        total, weight, begin = 0.0, 0.0, 0
        for n in PARTS:
            xs = jnp.asarray(source.read(begin, begin + n))
            begin += n
            carry = CELL.initial_carry()
            for t in range(n - 3):  # the steps that have both targets
                carry, y = CELL(params.cell, carry, xs[t])
                out = READOUT.apply(params.readout, y)
                total += jnp.mean((out - jnp.stack([xs[t + 1, 0], xs[t + 3, 0]])) ** 2)
                weight += 1
        return total / weight

    return jax.jit(jax.value_and_grad(mean_loss))(initial_params())


@pytest.mark.parametrize(
    ("streams", "chunk"), [(2, 12), pytest.param(3, 8, marks=pytest.mark.exhaustive)]
)
def test_the_gradient_of_an_epoch_equals_that_of_a_loop_over_recordings(streams, chunk):
    """Check the gradient of one chunk that covers every stream.

    Padding, resets and concatenation must not change the gradient of the weighted mean loss.
    """
    stream = RecordingStream(
        Waves(PARTS), streams, chunk, forecast_batches("row", (1, 3)), layout=whole_recordings
    )
    assert len(stream) == 1 and stream.chunk(0).batch.mask is not None
    estimator = tbptt.full_bptt(tbptt.sequence_loss(CELL, READOUT, tbptt.squared_error))

    def estimate(params, batch):
        return estimator.estimate(
            params, estimator.init(params, CELL.initial_carry((streams,)), batch), batch
        )

    gradient = jax.jit(estimate)(initial_params(), stream.chunk(0).batch)
    loss, grads = one_by_one()
    np.testing.assert_allclose(gradient.loss, loss, rtol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13), gradient.grads, grads
    )
    assert (
        max(np.abs(leaf).max() for leaf in jax.tree.leaves(jax.tree.map(np.asarray, grads))) > 1e-2
    )


WRONG = [
    (lambda source, span: np.zeros(3), "<lambda> must return a Batch without resets.*got ndarray"),
    (
        lambda source, span: rows_only(source, span)._replace(
            resets=np.zeros(span.stop - span.start, bool)
        ),
        "got one with resets",
    ),
    (
        lambda source, span: rows_only(source, span)._replace(
            mask=np.zeros(span.stop - span.start, bool)
        ),
        "<lambda> returned a mask, but the source has none; wrap the source in masking_bad",
    ),
    (
        lambda source, span: Batch(np.zeros((1, 2)), np.zeros(1)),
        "must return the 4 steps of Span.*; got an array of shape",
    ),
    (
        lambda source, span: Batch(np.zeros((n := span.stop - span.start, n)), np.zeros(n)),
        r"one shape and dtype; got float64\[4, 4\] after float64\[1, 1\]",
    ),
    (
        lambda source, span: Batch(
            np.zeros((n := span.stop - span.start, 2)), np.zeros(n), np.ones(n) if n > 1 else None
        ),
        "batches of one structure",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=range(len(WRONG)))
def test_the_result_of_make_batch_is_validated(make, message):
    with pytest.raises(ValueError, match=message):
        RecordingStream(Counting((10,)), 1, 4, make).chunk(0)


def test_argument_errors():
    source = Counting((3, 3))
    for call, error, message in [
        (lambda: RecordingStream(source, 7, 1, rows_only), ValueError, "streams=7, 6 rows"),
        (
            lambda: RecordingStream(source, 0, 1, rows_only),
            ValueError,
            "streams must be at least 1",
        ),
        (lambda: RecordingStream(source, 2, 0, rows_only), ValueError, "chunk must be at least 1"),
        (lambda: RecordingStream(source, 2, 2.0, rows_only), TypeError, "chunk"),
        (
            lambda: RecordingStream(source, 1, 2, rows_only).chunk(-1),
            ValueError,
            "number of a chunk",
        ),
    ]:
        with pytest.raises(error, match=message):
            call()
