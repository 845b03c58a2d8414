"""Ways to get gradients through time: one estimator a file, each a pair (init, estimate)."""

from tbptt.estimators.full import full_bptt as full_bptt
from tbptt.estimators.rtrl import rtrl as rtrl
from tbptt.estimators.snap import snap as snap
from tbptt.estimators.snap import sparse_rtrl as sparse_rtrl
from tbptt.estimators.sums import WindowInfo as WindowInfo
from tbptt.estimators.truncated import truncated_bptt as truncated_bptt
from tbptt.estimators.uoro import uoro as uoro
