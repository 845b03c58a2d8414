"""Nonlinear cells in parallel over time: Newton's method on all steps at once, with a report of whether it converged."""

from tbptt.newton.orbit import NewtonReport as NewtonReport
from tbptt.newton.unrolls import newton_unroll as newton_unroll
from tbptt.newton.unrolls import quasi_newton_unroll as quasi_newton_unroll
