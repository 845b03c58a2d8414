"""Keras 3 on jax, as in its guide: `keras.layers.LSTM`, the stateless API, `jax.jit`.

The carries are inputs and outputs of the model; data are batch-major; Adam's `global_clipnorm`
clips. Keras adds epsilon to sqrt(v) before the bias correction, the other libraries after it. The
same epsilon would weigh 32 times as much in the first update, and the losses of the larger cases
would differ by 3e-4. So Keras gets an epsilon that equals the others' in the first update.
"""

import math
import os
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"  # read at import

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import keras  # noqa: E402  # pyright: ignore[reportMissingImports]

from benchmarks.systems import jax_forms  # noqa: E402
from benchmarks.systems.work import (
    CLIP,
    EPSILON,
    LEARNING_RATE,
    Case,
    Data,
    Form,
    Weights,
    batch_major,
)  # noqa: E402

BETA_2 = 0.999  # the default of every library's Adam


def forms(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Make the forms."""
    model: Any = converted(case, weights)
    epsilon = EPSILON * math.sqrt(1 - BETA_2)
    optimizer: Any = keras.optimizers.Adam(
        LEARNING_RATE, beta_2=BETA_2, epsilon=epsilon, global_clipnorm=CLIP
    )
    optimizer.build(model.trainable_variables)

    def loss_fn(
        trainable: Any, fixed: Any, carry: Any, inputs: Any, targets: Any
    ) -> tuple[Any, Any]:
        one_hot, dtype = keras.ops.one_hot, model.compute_dtype
        xs = one_hot(inputs, case.D, dtype=dtype) if case.symbols else inputs
        inputs = [xs, *carry]
        (outputs, *carry), fixed = model.stateless_call(trainable, fixed, inputs, training=True)
        if case.symbols:
            cross_entropy = keras.losses.sparse_categorical_crossentropy
            losses = cross_entropy(targets, outputs, from_logits=True)
        else:
            losses = keras.losses.mean_squared_error(targets, outputs)
        return keras.ops.mean(losses), (fixed, carry)

    def step(state: Any, chunk: Any) -> tuple[Any, Any]:
        trainable, fixed, optimizer_variables, carry = state
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (fixed, carry)), grads = gradient(trainable, fixed, carry, *chunk)
        trainable, optimizer_variables = optimizer.stateless_apply(
            optimizer_variables, grads, trainable
        )
        return (trainable, fixed, optimizer_variables, carry), loss

    zeros = jnp.zeros((case.B, case.H), weights.w_x.dtype)
    groups = (model.trainable_variables, model.non_trainable_variables)
    variables = ([v.value for v in group] for group in groups)
    start = (*variables, [v.value for v in optimizer.variables], [zeros, zeros])
    return jax_forms.both_forms(step, start, batch_major(data))


def converted(case: Case, weights: Weights) -> Any:
    """Make the model `(x, h, c) -> (outputs, h, c)`; Keras has our layout, gates i, f, c, o."""
    dtype = str(weights.w_x.dtype)
    xs = keras.Input((case.k, case.D), batch_size=case.B, dtype=dtype)
    carry = [keras.Input((case.H,), batch_size=case.B, dtype=dtype) for _ in range(2)]
    lstm = keras.layers.LSTM(case.H, return_sequences=True, return_state=True, dtype=dtype)
    readout = keras.layers.Dense(case.outputs, dtype=dtype)
    ys, h, c = lstm(xs, initial_state=carry)
    model = keras.Model([xs, *carry], [readout(ys), h, c])
    lstm.set_weights(list(weights[:3]))
    readout.set_weights(list(weights[3:]))
    return model
