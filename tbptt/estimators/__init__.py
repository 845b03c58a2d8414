"""Gradient estimators, each a pair of pure functions (init, estimate)."""

from tbptt.estimators._common import WindowInfo as WindowInfo
from tbptt.estimators.adaptive.estimator import AdaptiveInfo as AdaptiveInfo
from tbptt.estimators.adaptive.estimator import AdaptiveMemory as AdaptiveMemory
from tbptt.estimators.adaptive.estimator import adaptive_bptt as adaptive_bptt
from tbptt.estimators.adaptive.window_choice import WindowChoice as WindowChoice
from tbptt.estimators.adaptive.window_choice import choose_window as choose_window
from tbptt.estimators.adaptive.window_choice import explain_choice as explain_choice
from tbptt.estimators.full import full_bptt as full_bptt
from tbptt.estimators.normalised import normalised as normalised
from tbptt.estimators.online.rtrl import rtrl as rtrl
from tbptt.estimators.online.snap import snap as snap
from tbptt.estimators.online.snap import sparse_rtrl as sparse_rtrl
from tbptt.estimators.online.uoro import uoro as uoro
from tbptt.estimators.randomized.estimator import BoundaryInfo as BoundaryInfo
from tbptt.estimators.randomized.estimator import random_window_bptt as random_window_bptt
from tbptt.estimators.randomized.estimator import randomized_bptt as randomized_bptt
from tbptt.estimators.randomized.schedules import AwdLengths as AwdLengths
from tbptt.estimators.randomized.schedules import ConstantRate as ConstantRate
from tbptt.estimators.randomized.schedules import HeavyTail as HeavyTail
from tbptt.estimators.randomized.schedules import LengthSchedule as LengthSchedule
from tbptt.estimators.randomized.schedules import LogUniformLengths as LogUniformLengths
from tbptt.estimators.randomized.schedules import TruncationSchedule as TruncationSchedule
from tbptt.estimators.truncated import truncated_bptt as truncated_bptt
