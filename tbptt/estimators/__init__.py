"""Ways to get gradients through time: one estimator a file, each a pair (init, estimate)."""

from tbptt.estimators.adaptive import adaptive_bptt as adaptive_bptt
from tbptt.estimators.adaptive_types import AdaptiveInfo as AdaptiveInfo
from tbptt.estimators.adaptive_types import AdaptiveMemory as AdaptiveMemory
from tbptt.estimators.choice import WindowChoice as WindowChoice
from tbptt.estimators.choice import explain_choice as explain_choice
from tbptt.estimators.full import full_bptt as full_bptt
from tbptt.estimators.random_windows import random_window_bptt as random_window_bptt
from tbptt.estimators.randomized import randomized_bptt as randomized_bptt
from tbptt.estimators.rtrl import rtrl as rtrl
from tbptt.estimators.schedules import AwdLengths as AwdLengths
from tbptt.estimators.schedules import ConstantRate as ConstantRate
from tbptt.estimators.schedules import HeavyTail as HeavyTail
from tbptt.estimators.schedules import LengthSchedule as LengthSchedule
from tbptt.estimators.schedules import LogUniformLengths as LogUniformLengths
from tbptt.estimators.schedules import TruncationSchedule as TruncationSchedule
from tbptt.estimators.seams import SeamInfo as SeamInfo
from tbptt.estimators.snap import snap as snap
from tbptt.estimators.snap import sparse_rtrl as sparse_rtrl
from tbptt.estimators.sums import WindowInfo as WindowInfo
from tbptt.estimators.truncated import truncated_bptt as truncated_bptt
from tbptt.estimators.uoro import uoro as uoro
from tbptt.estimators.window_choice import choose_window as choose_window
