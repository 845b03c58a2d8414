"""Optax transformations against exploding and non-finite gradients.

    optimizer = optax.chain(clip_by_global_norm(1.0), skip_non_finite(optax.adam(1e-3)))

Put clipping first in the chain and the policy on non-finite gradients around the optimizer.
`clip_by_global_norm` passes inf and NaN, so that the policy detects them; its counters continue
while the policy holds the state of the optimizer.

The policies act on the updates of the optimizer. A NaN among the inputs also enters the carry, from
which every later chunk starts. `reset_on_non_finite(estimator)` restarts the stream in that case.

With float16 parameters, the default eps of Adam (1e-8) rounds to 0. An entry with gradient exactly
0 (a dead unit, an unused embedding) is then 0 / 0, and `skip_non_finite` skips every update. Use
`optax.adam(lr, eps=1e-4)`, or keep the parameters in float32.

For clipping by leaf, by unit and by element use optax; `with_clip_stats` adds counters and the
`clipped` of the train step:

    with_clip_stats(optax.adaptive_grad_clip(0.01))      by unit: |g| <= 0.01 |w| for each column of
                                                         a matrix `[in, out]`
    with_clip_stats(optax.clip_by_block_rms(1.0))        by leaf: its root mean square
    with_clip_stats(optax.clip(1.0))                     by element; this changes the direction
    sums, n = optax.per_example_global_norm_clip(leaves, 1.0)    leaves `[B, ...]`, from a vmapped
                                                                 gradient

All of these square in the dtype of the gradient. If the square overflows, they return zeros, and
`with_clip_stats` reports `clipped`. With several clippings in one chain `clipped` is whether any of
them clipped.
"""

from tbptt.numerics import global_norm as global_norm
from tbptt.optim.clip import ClipState as ClipState
from tbptt.optim.clip import ClipStatsState as ClipStatsState
from tbptt.optim.clip import clip_by_global_norm as clip_by_global_norm
from tbptt.optim.clip import with_clip_stats as with_clip_stats
from tbptt.optim.non_finite import ShrinkState as ShrinkState
from tbptt.optim.non_finite import SkipState as SkipState
from tbptt.optim.non_finite import StopState as StopState
from tbptt.optim.non_finite import leaves_named as leaves_named
from tbptt.optim.non_finite import raise_if_non_finite as raise_if_non_finite
from tbptt.optim.non_finite import shrink_non_finite as shrink_non_finite
from tbptt.optim.non_finite import skip_non_finite as skip_non_finite
from tbptt.optim.non_finite import stop_at_non_finite as stop_at_non_finite
from tbptt.optim.reset_stream import ResetInfo as ResetInfo
from tbptt.optim.reset_stream import ResetMemory as ResetMemory
from tbptt.optim.reset_stream import reset_on_non_finite as reset_on_non_finite
from tbptt.optim.schedule import RunFractionState as RunFractionState
from tbptt.optim.schedule import adam_with_decay as adam_with_decay
from tbptt.optim.schedule import scale_by_run_fraction as scale_by_run_fraction
from tbptt.optim.schedule import set_run_fraction as set_run_fraction
