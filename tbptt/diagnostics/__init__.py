"""Looking at gradients through time."""

from tbptt.diagnostics.lag import gradient_by_lag as gradient_by_lag
