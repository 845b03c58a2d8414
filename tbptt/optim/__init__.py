"""What optax lacks against exploding gradients; everything here is an optax transformation or works beside them.

    optimizer = optax.chain(clip_by_global_norm(1.0), skip_non_finite(optax.adam(1e-3)))

Clipping goes outside, the policy on non-finite gradients inside: `clip_by_global_norm` lets inf and NaN through, and
the policy sees them; its own counters go on while the policy holds the optimizer still.

Policies act on the optimizer's updates. Where the NaN comes from the inputs it is also in the carry, from which every
later chunk starts: `reset_on_non_finite(estimator)` starts the stream afresh, so that training goes on.

float16 parameters: Adam's default eps of 1e-8 is 0 there, so that an entry whose gradient is exactly 0 (a dead unit, an
unused embedding) makes 0 / 0, and `skip_non_finite` skips every update. Give `optax.adam(lr, eps=1e-4)`, or keep the
parameters in float32.

Clipping by leaf, by unit and by element is optax's; `with_clip_stats` adds the counters and the train step's `clipped`:

    with_clip_stats(optax.adaptive_grad_clip(0.01))      by unit: |g| <= 0.01 |w| for every column of a matrix `[in, out]`
    with_clip_stats(optax.clip_by_block_rms(1.0))        by leaf: its root mean square
    with_clip_stats(optax.clip(1.0))                     by element; the direction changes
    sums, n = optax.per_example_global_norm_clip(leaves, 1.0)    leaves `[B, ...]`, from a vmapped gradient

All of these square in the gradient's own dtype: where that overflows they make zeros, and `with_clip_stats` then says clipped.
One with_clip_stats or safe clipping a chain: with two, the train step would not know which `clipped` to report (KeyError).
"""

from tbptt.numerics import global_norm as global_norm
from tbptt.optim.clip import ClipState as ClipState
from tbptt.optim.clip import clip_by_global_norm as clip_by_global_norm
from tbptt.optim.non_finite import SkipState as SkipState
from tbptt.optim.non_finite import StopState as StopState
from tbptt.optim.non_finite import raise_if_non_finite as raise_if_non_finite
from tbptt.optim.non_finite import skip_non_finite as skip_non_finite
from tbptt.optim.non_finite import stop_at_non_finite as stop_at_non_finite
from tbptt.optim.reset_stream import ResetInfo as ResetInfo
from tbptt.optim.reset_stream import ResetMemory as ResetMemory
from tbptt.optim.reset_stream import reset_on_non_finite as reset_on_non_finite
from tbptt.optim.shrink import ShrinkState as ShrinkState
from tbptt.optim.shrink import leaves_named as leaves_named
from tbptt.optim.shrink import shrink_non_finite as shrink_non_finite
from tbptt.optim.with_clip_stats import ClipStatsState as ClipStatsState
from tbptt.optim.with_clip_stats import with_clip_stats as with_clip_stats
