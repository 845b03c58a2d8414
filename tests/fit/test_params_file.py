"""Parameters survive a file to the bit; a file of another model is refused by name."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt


@functools.cache
def params_of(cell):
    """Return random parameters as arrays of numpy, which compile no program."""
    init = functools.partial(tbptt.init_params, cell=cell, readout=nn.Dense(1))
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: draw.normal(size=a.shape).astype(a.dtype), jax.eval_shape(init, jax.random.key(0))
    )


def test_params_survive_to_the_bit(tmp_path):
    for params in (
        params_of(tbptt.Stack((tbptt.GRU(2, 3), tbptt.LSTM(3, 4)))),
        {"w": np.asarray([1.5, np.pi], jnp.bfloat16), "n": (jnp.int32(3), [np.ones((0, 2))])},
    ):
        tbptt.save(params, tmp_path / "params.msgpack")
        loaded = tbptt.load(tmp_path / "params.msgpack", jax.tree.map(np.zeros_like, params))
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
