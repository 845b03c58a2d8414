"""The textbook: `jax.lax.scan` over an LSTM step as it stands in books, `jax.value_and_grad`, optax.

On all cores: the same step inside `jax.shard_map`, lanes dealt out, gradients added up once an update; what a user who
knows jax well would write, so that ours on all cores is compared with an engine and not with a missing core.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.nn import sigmoid
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.systems import jax_forms
from benchmarks.systems.work import Case, Data, Form, Weights


def lstm_step(params: Weights, carry: tuple[Any, Any], x: Any) -> tuple[tuple[Any, Any], Any]:
    """One step: (carry, y), gates split on the last axis."""
    h, c = carry
    i, f, g, o = jnp.split(x @ params.w_x + h @ params.w_h + params.b, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    h = sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def forms(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Makes the forms on one device."""
    return jax_forms.both_forms(make_step(case, lambda mean: mean), begin(case, weights), data)


def forms_on_cores(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Makes the forms on as many devices as there are and lanes go into; none where that is one of several."""
    if (devices := jax_forms.devices_for(case)) is None:
        return {}
    whole, lanes, steps = PartitionSpec(), PartitionSpec("lanes"), PartitionSpec(None, "lanes")
    mesh = jax.make_mesh((devices,), ("lanes",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    step = jax.shard_map(
        make_step(case, lambda mean: jax.lax.pmean(mean, "lanes")),
        mesh=mesh,
        in_specs=((whole, whole, lanes), (steps, steps)),
        out_specs=((whole, whole, lanes), whole),
        check_vma=False,  # else the gradients would be added up twice, or step by step
    )
    params, opt_state, carry = begin(case, weights)
    state = (
        *jax.device_put((params, opt_state), NamedSharding(mesh, whole)),
        jax.device_put(carry, NamedSharding(mesh, lanes)),
    )
    dealt = jax.device_put(jax.tree.map(jnp.asarray, data), NamedSharding(mesh, PartitionSpec(None, None, "lanes")))
    return jax_forms.both_forms(step, state, dealt, jit=jax_forms.jit_and_wait)


def begin(case: Case, weights: Weights) -> Any:
    """Makes the state of the first update."""
    params, zeros = jax.tree.map(jnp.asarray, weights), jnp.zeros((case.B, case.H), weights.w_x.dtype)
    return params, jax_forms.optimizer().init(params), (zeros, zeros)


def make_step(case: Case, over_devices: Callable[[Any], Any]) -> jax_forms.Step:
    """Makes the pure step; `over_devices` takes the means of the devices' own gradients and losses."""
    optimizer = jax_forms.optimizer()

    def loss_fn(params: Weights, carry: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
        xs = jax_forms.features(inputs, case, params.w_x.dtype)
        carry, ys = jax.lax.scan(lambda c, x: lstm_step(params, c, x), carry, xs)
        return jax_forms.mean_loss(ys @ params.w_y + params.b_y, targets), carry

    def step(state: Any, chunk: Any) -> tuple[Any, Any]:
        params, opt_state, carry = state
        (loss, carry), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, carry, *chunk)
        loss, grads = over_devices((loss, grads))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, carry), loss

    return step
