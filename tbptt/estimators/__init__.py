"""Ways to get gradients through time: one estimator a file, each a pair (init, estimate)."""

from tbptt.estimators.full import full_bptt as full_bptt
from tbptt.estimators.sums import WindowInfo as WindowInfo
from tbptt.estimators.truncated import truncated_bptt as truncated_bptt
