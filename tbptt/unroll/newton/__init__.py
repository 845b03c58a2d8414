"""Unroll functions for nonlinear cells, in parallel over time by Newton's method."""

from tbptt.unroll.newton.solve import NewtonReport as NewtonReport
from tbptt.unroll.newton.unrolls import newton_unroll as newton_unroll
from tbptt.unroll.newton.unrolls import newton_unroll_with_report as newton_unroll_with_report
from tbptt.unroll.newton.unrolls import quasi_newton_unroll as quasi_newton_unroll
from tbptt.unroll.newton.unrolls import (
    quasi_newton_unroll_with_report as quasi_newton_unroll_with_report,
)
