"""N-grams score the same bytes as the network, with the order chosen on the validation part."""

import jax
import numpy as np
import pytest

from experiments import train
from experiments.support.common import ngram
from experiments.support.train import text_baselines
from experiments.support.train.data import RunData, open_data
from experiments.support.train.result import baseline_scores
from experiments.support.train.setup import _in_bits

RNG = np.random.default_rng(0)
WORDS = ["aber ", "ab ", "der ", "rabe ", "da\n"]
TEXT = "".join(RNG.choice(WORDS, size=400)).encode()


@pytest.fixture
def data(tmp_path) -> RunData:
    path = tmp_path / "x.txt"
    path.write_bytes(TEXT)
    return open_data(train.Config(data=(path,), task="characters"))


def bits_of(chances, data, start, stop, order):
    """Return the mean bits of bytes [start + 1, stop) by order, from all bytes before them."""
    codes = np.searchsorted(np.array(sorted(set(TEXT))), np.frombuffer(TEXT, np.uint8))
    text, V = codes[start - 6 : stop], len(set(TEXT))
    return [-np.log2(p[7:]).mean() for p in chances(codes[: data.ends.train], text, V, order)]


@pytest.mark.parametrize("block", [1 << 18, 37])
def test_the_order_of_the_validation_part_scores_every_byte_of_the_test_part(
    data, block, monkeypatch
):
    monkeypatch.setattr(text_baselines, "BLOCK", block)
    found = text_baselines.text_scores(data, data.task)
    _, valid, test = data.ends
    want = {}
    for method, chances in text_baselines.METHODS.items():
        upto = min(valid, data.ends.train + block)
        best = int(np.argmin(bits_of(chances, data, data.ends.train, upto, 6)))
        bits = bits_of(chances, data, valid, test, best)[best]
        want[f"{method} {best + 1}-grams of bytes"] = {"bits_per_byte": pytest.approx(bits)}
    assert found == want and len(found) == 2
    single = baseline_scores(data)
    best = min(one["bits_per_byte"] for one in found.values())
    assert single.keys() == {"byte frequencies", *found}
    assert best < 0.7 * single["byte frequencies"]["bits_per_byte"]


def test_a_short_training_part_counts_its_newest_bytes_and_says_so(data, monkeypatch):
    monkeypatch.setattr(text_baselines, "MOST", 300)
    found = text_baselines.text_scores(data, data.task)
    assert all(name.endswith(" (last 300 bytes of the training part)") for name in found)
    assert len(found) == 2


def test_kneser_ney_of_every_order_is_that_of_this_order():
    codes = RNG.integers(4, size=300) * RNG.integers(2, size=300)
    every = list(ngram.kneser_ney_chances(codes[:200], codes[200:], 4, 3))
    for order, p in enumerate(every):
        alone = ngram.kneser_ney(codes[:200], codes[200:], 4, order)
        np.testing.assert_allclose(-np.log2(p).mean(), alone, rtol=1e-12)
    assert len({float(p.mean()) for p in every}) == 4


def test_the_loss_of_a_text_is_logged_in_bits():
    in_bits = _in_bits(lambda metrics: metrics)
    metrics = train.tbptt.Metrics(
        jax.numpy.log(8.0), jax.numpy.ones(()), None, jax.numpy.zeros((), bool), None
    )
    np.testing.assert_allclose(in_bits(metrics).loss, 3, rtol=1e-12)
