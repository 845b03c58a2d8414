"""Streams and chunks equal the loops of their docstrings, and gaps between chunks raise errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.data import Chunk, DiscontinuousFeed, chunks, continuous, split_into_streams
from tbptt.types import Batch


def stream(T: int = 12, n: int | None = 2) -> Batch:
    batch = () if n is None else (n,)
    inputs = np.arange(T * max(1, n or 1) * 3, dtype=np.float32).reshape(T, *batch, 3)
    return Batch(inputs, inputs[..., :1] + 0.5, weights=np.ones((T, *batch), np.float32))


@pytest.mark.parametrize(("n", "xp"), [(1, np), (2, np), (3, np), (12, np), (3, jnp)])
def test_stream_i_holds_contiguous_steps(n: int, xp) -> None:
    tree = {"x": xp.arange(24).reshape(12, 2), "y": xp.arange(12)}
    laid = split_into_streams(tree, n)
    assert laid["x"].shape == (12 // n, n, 2) and laid["y"].shape == (12 // n, n)
    assert isinstance(laid["x"], type(tree["x"]))
    laid, tree = jax.tree.map(np.asarray, (laid, tree))
    for i, t in itertools.product(range(n), range(12 // n)):
        np.testing.assert_array_equal(laid["x"][t, i], tree["x"][i * (12 // n) + t])
        assert laid["y"][t, i] == i * (12 // n) + t


def test_streams_of_a_batch_are_views() -> None:
    batch = stream(12, None)
    laid = split_into_streams(batch, 4)
    assert isinstance(laid, Batch) and laid.resets is None and np.shape(laid.inputs) == (3, 4, 3)
    assert np.shares_memory(np.asarray(laid.inputs), np.asarray(batch.inputs))


def test_split_into_streams_errors() -> None:
    with pytest.raises(ValueError, match="got T=12, n=5. Trim to T=10 explicitly"):
        split_into_streams(np.zeros(12), 5)
    with pytest.raises(ValueError, match="got T=12, n=13. Take at most n=12"):
        split_into_streams(np.zeros(12), 13)
    with pytest.raises(ValueError, match="n must be at least 1"):
        split_into_streams(np.zeros(12), 0)
    with pytest.raises(TypeError):
        split_into_streams(np.zeros(12), 2.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="must share their leading time axis"):
        split_into_streams({"a": np.zeros(12), "b": np.zeros(10)}, 2)


@pytest.mark.parametrize("length", [1, 3, 4, 12])
def test_concatenated_chunks_equal_the_stream(length: int) -> None:
    batch = stream()
    parts = list(chunks(batch, length))
    assert [part.start for part in parts] == list(range(0, 12, length))
    assert all(len(np.asarray(part.batch.inputs)) == length for part in parts)
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[part.batch for part in parts])
    jax.tree.map(np.testing.assert_array_equal, whole, batch)


def test_chunks_validates_its_arguments_when_called() -> None:
    with pytest.raises(ValueError, match="T=12, length=5"):
        chunks(stream(), 5)
    with pytest.raises(ValueError, match="length must be at least 1"):
        chunks(stream(), 0)


def test_continuous_yields_the_batches_unchanged() -> None:
    parts = list(chunks(stream(), 4))
    assert [batch is part.batch for batch, part in zip(continuous(parts), parts, strict=True)] == [
        True
    ] * 3
    assert len(list(continuous(parts[1:], start=4))) == 2
    uneven = [
        Chunk(jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], stream()), a)
        for a, b in [(0, 3), (3, 8), (8, 12)]
    ]
    assert len(list(continuous(uneven))) == 3, "chunks need not be of one length"


@pytest.mark.parametrize(
    ("order", "expected", "got"),
    [
        ((1, 0, 2), 0, 4),
        ((0, 2, 1), 4, 8),
        ((0, 0, 1), 4, 0),
        ((0, 1, 2, 0, 1, 2), 12, 0),
        ((0, 2), 4, 8),
    ],
    ids=["first", "shuffled", "repeated", "second_epoch", "missing"],
)
def test_continuous_raises_at_a_gap(order: tuple[int, ...], expected: int, got: int) -> None:
    parts = list(chunks(stream(), 4))
    feed = continuous([parts[i] for i in order])
    message = (
        f"expected the chunk that begins at step {expected}; got the one at step {got}.*carry "
        f"continues from step {expected}"
    )
    with pytest.raises(DiscontinuousFeed, match=message):
        list(feed)


def test_continuous_is_lazy_and_raises_at_the_gap() -> None:
    parts = list(chunks(stream(), 4))
    feed = continuous(iter([parts[0], parts[1], parts[0]]))
    assert next(feed) is parts[0].batch and next(feed) is parts[1].batch
    with pytest.raises(DiscontinuousFeed):
        next(feed)


def second_epoch(resets: np.ndarray | None, mask: np.ndarray | None = None) -> list[Batch]:
    first, second = Chunk(stream(4), 0), Chunk(stream(4)._replace(resets=resets, mask=mask), 0)
    return list(continuous([first, second]))


def test_a_reset_of_every_stream_allows_a_gap() -> None:
    resets = np.zeros((4, 2), bool)
    resets[0] = True
    assert len(second_epoch(resets)) == 2
    assert len(second_epoch(jnp.asarray(resets), np.ones((4, 2), bool))) == 2
    one_stream, later = resets.copy(), np.roll(resets, 1, axis=0)
    one_stream[0, 1] = False
    padded = np.ones((4, 2), bool)
    padded[0, 1] = False  # a reset on a masked step has no effect
    waits = resets.copy()
    waits[:2, 1] = False, True  # the reset is at the first unmasked step
    assert len(second_epoch(waits, padded)) == 2
    nothing = padded & [True, False]  # a fully masked stream holds its carry
    for case in [(None,), (one_stream,), (later,), (resets, padded), (resets, nothing)]:
        with pytest.raises(
            DiscontinuousFeed,
            match="expected the chunk that begins at step 4; got the one at step 0",
        ):
            second_epoch(*case)


def test_the_number_of_streams_must_not_change() -> None:
    resets = np.ones((4, 3), bool)
    with pytest.raises(
        DiscontinuousFeed, match=r"expected streams of shape \(2,\) at step 4; got \(3,\)"
    ):
        list(continuous([Chunk(stream(4, 2), 0), Chunk(stream(4, 3)._replace(resets=resets), 4)]))


def test_continuous_rejects_other_types() -> None:
    with pytest.raises(TypeError, match=r"takes Chunk\(batch, start\).*got Batch"):
        list(continuous(iter([stream()])))  # pyright: ignore[reportArgumentType]
