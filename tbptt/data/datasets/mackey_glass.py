"""Generate the Mackey-Glass series, a chaotic delay equation for forecasting."""

import math

import numpy as np
from jaxtyping import Float64

from tbptt import windows
from tbptt.data.tables.series import Recording

BETA, GAMMA, POWER = 0.2, 0.1, 10
STEPS_PER_UNIT = 10  # the integration step is 0.1 time units


def mackey_glass(
    steps: int = 10_000, seed: int = 0, tau: float = 17.0, washout: int = 1_000
) -> Recording:
    """Generate a Mackey-Glass series, sampled once per time unit, without its transient.

        dx/dt = beta x(t - tau) / (1 + x(t - tau)^n) - gamma x(t),   beta = 0.2, gamma = 0.1, n = 10

    Before time 0, x is a constant drawn from 0.5 .. 1.3. The series is weakly chaotic at
    tau = 17, more so at tau = 30, and converges to x = 1 below about 4.5. About 10 microseconds
    per sample.

    Args:
        steps: static, number of samples T.
        seed: determines the stretch of the attractor.
        tau: the delay, in time units, a multiple of 0.1.
        washout: static, number of samples discarded at the start.

    Returns:
        A Recording `[steps, 1]` with the column "x" and rate 1.0, one sample per time unit.

    Raises:
        TypeError: steps or washout is not an int.
        ValueError: steps < 1, washout < 0, or tau is not a positive multiple of 0.1.

    References:
        Mackey and Glass, *Oscillation and chaos in physiological control systems*, Science 197
        (1977) 287-289.
    """
    windows.check_window("steps", steps)
    if washout != 0:
        windows.check_window("washout", washout)
    history = float(np.random.default_rng(seed).uniform(0.5, 1.3))
    values = integrate(history, washout + steps, tau)[washout:, None]
    return Recording(
        values, ("x",), 1.0, f"Mackey-Glass, tau={tau}, seed={seed}, washout={washout}"
    )


def integrate(history: float, steps: int, tau: float = 17.0) -> Float64[np.ndarray, " T"]:
    """Integrate the equation from a constant past: samples x(0) = history, x(1), ..., x(steps - 1).

    Classic Runge-Kutta of order 4 with a step h = 0.1. Its middle stages need the delayed x
    half-way between two nodes:

        x(t + h/2) = (x(t) + x(t+h)) / 2 + h/8 (x'(t) - x'(t+h))            (cubic Hermite)

    which, unlike linear interpolation, preserves order 4.
    """
    h = 1.0 / STEPS_PER_UNIT
    delay = round(tau * STEPS_PER_UNIT) if math.isfinite(tau) else 0
    if delay < 1 or abs(delay - tau * STEPS_PER_UNIT) > 1e-9 * delay:
        raise ValueError(
            f"tau must be a positive multiple of {h} time units, the integration step; got "
            f"tau={tau}"
        )

    def production(x: float) -> float:
        return BETA * x / (1.0 + x**POWER)

    # Production terms of the delayed x at the nodes and half-way: entry i is at time i*h - tau.
    past = production(history)
    at_node, at_middle = [past] * (delay + 1), [past] * delay
    x, samples = history, [history]
    slope = past - GAMMA * x
    for i in range((steps - 1) * STEPS_PER_UNIT):
        k1 = slope
        k2 = at_middle[i] - GAMMA * (x + 0.5 * h * k1)
        k3 = at_middle[i] - GAMMA * (x + 0.5 * h * k2)
        k4 = at_node[i + 1] - GAMMA * (x + h * k3)
        x_next = x + h / 6.0 * (k1 + 2.0 * (k2 + k3) + k4)
        slope = at_node[i + 1] - GAMMA * x_next
        at_middle.append(production(0.5 * (x + x_next) + h / 8.0 * (k1 - slope)))
        at_node.append(production(x_next))
        x = x_next
        if (i + 1) % STEPS_PER_UNIT == 0:
            samples.append(x)
    return np.array(samples, np.float64)
