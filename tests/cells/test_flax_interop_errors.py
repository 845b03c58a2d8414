"""Every error of `LinenCell`, `NnxCell` and `as_linen` names what came and what was wanted."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from flax import nnx

import tbptt
from tbptt.cells.flax_interop import LinenCell, NnxCell, as_linen

D, H = 2, 5


def nnx_gru(rngs):
    return nnx.GRUCell(D, H, rngs=rngs)


class Counting(nn.RNNCellBase):
    """A linen cell with a variable that is not a parameter."""

    features: int = H

    @nn.compact
    def __call__(self, carry, inputs):
        self.variable("counts", "steps", lambda: jnp.zeros(()))
        return carry, carry

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self):
        return 1


class NnxCounting(nnx.SimpleCell):
    def __init__(self, rngs):
        super().__init__(D, H, rngs=rngs)
        self.steps = nnx.Variable(jnp.zeros(()))


@pytest.fixture
def without_the_hook():
    """Disable the type-checking hook, to test the messages that users see."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: LinenCell(nn.Dense(3), 2),
            TypeError,
            r"LinenCell\.module .*RNNCellBase.*got Dense",
        ),
        (
            lambda: LinenCell(nn.LSTMCell, 2),
            TypeError,
            r"LinenCell\.module .*got the class LSTMCell",
        ),
        (
            lambda: LinenCell(nn.RNN(nn.LSTMCell(3)), 2),
            TypeError,
            r"got RNN.*not the nn\.RNN around it",
        ),
        (lambda: LinenCell(nnx_gru(nnx.Rngs(0)), 2), TypeError, r"got GRUCell.*NnxCell"),
        (
            lambda: LinenCell(nn.LSTMCell(3), 0),
            ValueError,
            r"LinenCell\.input_dim must be .*at least 1; got 0",
        ),
        (
            lambda: LinenCell(nn.LSTMCell(3), 2.0),
            TypeError,
            r"LinenCell\.input_dim must be a Python int .*got 2\.0",
        ),
        (
            lambda: LinenCell(nn.ConvLSTMCell(3, (3,)), 2),
            ValueError,
            r"ConvLSTMCell with 2 feature axes",
        ),
        (
            lambda: LinenCell(nn.LSTMCell(3, carry_init=Unhashable()), 2),
            TypeError,
            r"must be hashable; got LSTMCell",
        ),
        (
            lambda: LinenCell(Counting(), D).init(jax.random.key(0)),
            ValueError,
            r"Counting with \['counts'\]",
        ),
        (
            lambda: NnxCell(nnx_gru(nnx.Rngs(0)), D),
            TypeError,
            r"NnxCell\.make must be a function.*got GRUCell",
        ),
        (lambda: NnxCell(3, D), TypeError, r"NnxCell\.make must be a function.*got int"),
        (
            lambda: NnxCell(lambda rngs: nnx.Linear(D, H, rngs=rngs), D),
            TypeError,
            r"must return .*got Linear",
        ),
        (
            lambda: NnxCell(lambda rngs: nn.GRUCell(H), D),
            TypeError,
            r"must return .*for a linen cell use LinenCell",
        ),
        (
            lambda: NnxCell(nnx_gru, -1),
            ValueError,
            r"NnxCell\.input_dim must be .*at least 1; got -1",
        ),
        (
            lambda: NnxCell(nnx_gru, D + 1),
            ValueError,
            r"input_dim must be in_features=2 of the GRUCell; got 3",
        ),
        (lambda: NnxCell(NnxCounting, D), ValueError, r"NnxCounting with \['steps'\]"),
        (
            lambda: as_linen(nn.LSTMCell(3)),
            TypeError,
            r"cell must be an instance of a tbptt Cell.*got LSTMCell",
        ),
        (
            lambda: as_linen(tbptt.Stack),
            TypeError,
            r"cell must be an instance.*got the class Stack",
        ),
        (
            lambda: nn.RNN(as_linen(tbptt.LSTM(2, 8))).init(jax.random.key(0), jnp.zeros((4, 3))),
            ValueError,
            r"inputs must be \[\.\.\., D\] with D = LSTM\.input_dim = 2; got shape \(3,\)",
        ),
    ],
)
def test_error_messages(make, error, message, without_the_hook):
    with pytest.raises(error, match=message):
        make()


class Unhashable:
    __hash__ = None

    def __call__(self, key, shape, dtype):
        return jnp.zeros(shape, dtype)
