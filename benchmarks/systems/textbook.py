"""The textbook: `jax.lax.scan` over the LSTM step of textbooks, `jax.value_and_grad`, optax.

On all cores: the same step inside `jax.shard_map`, with the batch sharded and gradients averaged
once per update. An experienced user of jax would write it like this, so ours on all cores is
compared with equal hardware.
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
    """Return (carry, y) of one step; the gates are split on the last axis."""
    h, c = carry
    i, f, g, o = jnp.split(x @ params.w_x + h @ params.w_h + params.b, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    h = sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def forms(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Make the forms on one device."""
    return jax_forms.both_forms(make_step(case, lambda mean: mean), begin(case, weights), data)


def forms_on_cores(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Make the forms on as many devices as divide the batch; none if that is one of several."""
    if (devices := jax_forms.devices_for(case)) is None:
        return {}
    whole, rows, steps = PartitionSpec(), PartitionSpec("batch"), PartitionSpec(None, "batch")
    mesh = jax.make_mesh(
        (devices,), ("batch",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,)
    )
    step = jax.shard_map(
        make_step(case, lambda mean: jax.lax.pmean(mean, "batch")),
        mesh=mesh,
        in_specs=((whole, whole, rows), (steps, steps)),
        out_specs=((whole, whole, rows), whole),
        check_vma=False,  # otherwise the gradients are summed twice, or at every step
    )
    params, opt_state, carry = begin(case, weights)
    state = (
        *jax.device_put((params, opt_state), NamedSharding(mesh, whole)),
        jax.device_put(carry, NamedSharding(mesh, rows)),
    )
    chunks = NamedSharding(mesh, PartitionSpec(None, None, "batch"))
    sharded = jax.device_put(jax.tree.map(jnp.asarray, data), chunks)
    return jax_forms.both_forms(step, state, sharded, jit=jax_forms.jit_and_wait)


def begin(case: Case, weights: Weights) -> Any:
    """Make the state before the first update."""
    params = jax.tree.map(jnp.asarray, weights)
    zeros = jnp.zeros((case.B, case.H), weights.w_x.dtype)
    return params, jax_forms.optimizer().init(params), (zeros, zeros)


def make_step(case: Case, over_devices: Callable[[Any], Any]) -> jax_forms.Step:
    """Make the pure step; `over_devices` averages losses and gradients over the devices."""
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
