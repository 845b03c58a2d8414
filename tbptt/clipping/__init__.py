"""What optax lacks against exploding gradients; everything here is an optax transformation or works beside them.

    optimizer = optax.chain(clip_by_global_norm(1.0), skip_non_finite(optax.adam(1e-3)))

Clipping goes outside, the policy on non-finite gradients inside: `clip_by_global_norm` lets inf and NaN through, and
the policy sees them; its own counters go on while the policy holds the optimizer still.

Policies act on the optimizer's updates. Where the NaN comes from the inputs it is also in the carry, from which every
later chunk starts: `guarded(estimator)` starts the stream afresh, so that training goes on.

float16 parameters: Adam's default eps of 1e-8 is 0 there, so that an entry whose gradient is exactly 0 (a dead unit, an
unused embedding) makes 0 / 0, and `skip_non_finite` skips every update. Give `optax.adam(lr, eps=1e-4)`, or keep the
parameters in float32.

Clipping by leaf, by unit and by element is optax's; `watched` adds the counters and the train step's `clipped`:

    watched(optax.adaptive_grad_clip(0.01))      by unit: |g| <= 0.01 |w| for every column of a matrix `[in, out]`
    watched(optax.clip_by_block_rms(1.0))        by leaf: its root mean square
    watched(optax.clip(1.0))                     by element; the direction changes
    sums, n = optax.per_example_global_norm_clip(leaves, 1.0)    leaves `[B, ...]`, from a vmapped gradient

All of these square in the gradient's own dtype: where that overflows they make zeros, and `watched` then says clipped.
One watched or safe clipping a chain: with two, the train step would not know which `clipped` to report (KeyError).
"""

from tbptt.clipping.cotangent import ClippedCell as ClippedCell
from tbptt.clipping.cotangent import clip_cotangent as clip_cotangent
from tbptt.clipping.guard import GuardedInfo as GuardedInfo
from tbptt.clipping.guard import GuardedMemory as GuardedMemory
from tbptt.clipping.guard import guarded as guarded
from tbptt.clipping.norm import ClipState as ClipState
from tbptt.clipping.norm import clip_by_global_norm as clip_by_global_norm
from tbptt.clipping.policy import SkipState as SkipState
from tbptt.clipping.policy import StopState as StopState
from tbptt.clipping.policy import raise_if_non_finite as raise_if_non_finite
from tbptt.clipping.policy import skip_non_finite as skip_non_finite
from tbptt.clipping.policy import stop_at_non_finite as stop_at_non_finite
from tbptt.clipping.shrink import ShrinkState as ShrinkState
from tbptt.clipping.shrink import leaves_named as leaves_named
from tbptt.clipping.shrink import shrink_non_finite as shrink_non_finite
from tbptt.clipping.watch import WatchedState as WatchedState
from tbptt.clipping.watch import watched as watched
from tbptt.norms import global_norm as global_norm
