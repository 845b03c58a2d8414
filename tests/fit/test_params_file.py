"""Parameters survive a file to the bit; a file of another model is refused by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tests.support.sequences import sequence_params


def params_of(cell):
    return sequence_params(cell, nn.Dense(1), seed=1)


def test_params_survive_to_the_bit(tmp_path):
    for params in (
        params_of(tbptt.Stack((tbptt.GRU(2, 3), tbptt.LSTM(3, 4)))),
        {"w": jnp.asarray([1.5, np.pi], jnp.bfloat16), "n": (jnp.int32(3), [jnp.ones((0, 2))])},
    ):
        tbptt.save(params, tmp_path / "params.msgpack")
        loaded = tbptt.load(tmp_path / "params.msgpack", jax.tree.map(jnp.zeros_like, params))
        assert jax.tree.structure(loaded) == jax.tree.structure(params)
        for a, b in zip(*map(jax.tree.leaves, (loaded, params)), strict=True):
            assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["params.msgpack"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "params.msgpack"
    tbptt.save(params_of(tbptt.GRU(2, 3)), path)
    with pytest.raises(
        ValueError, match=r"params\.cell\S* is float\d+\[2, 9\], but float\d+\[2, 12\]"
    ):
        tbptt.load(path, params_of(tbptt.GRU(2, 4)))
    with pytest.raises(ValueError, match="does not hold parameters of this model"):
        tbptt.load(path, params_of(tbptt.Elman(2, 3)))
    path.write_bytes(b"no parameters")
    with pytest.raises(ValueError, match="params.msgpack does not hold parameters"):
        tbptt.load(path, params_of(tbptt.GRU(2, 3)))
