"""A watch on gradients: says the moment they vanish, explode or stop being numbers, once an episode, and what to try."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

WINDOW = 200  # updates that "usual" is the median of
LEARNING = 20  # updates before "usual" means anything
PERSISTENT = 5  # one small gradient is chance (a chunk of silence); this many in a row are not
CALM = 20  # good updates in a row that end an episode
EXPLODED, DRIFTED = 100.0, 1e4  # times the usual norm, times the norm at the start
VANISHED, ROUNDING = 1e-3, 2.0**-23  # of the usual norm; of the norm at the start: one unit in float32's last place
FALLING = 0.7  # the loss of the last CALM updates against the last WINDOW: below it, something is being learnt
LEARNT = 0.03  # a loss that fell below this share of what it was explains a small gradient
OVERFLOWING = 1.8e19  # the square of a float32 above it is inf
DEAD = 1.2e-38  # below the smallest normal float32


class Seen(NamedTuple):
    """What the watch remembers between two updates.

    norms, losses: of the last WINDOW updates that were well
    start:   (norm, loss), medians of the first LEARNING updates; None until then
    small:   updates in a row whose gradient was too small
    episode: what is going on, already said; None if all is well
    calm:    good updates in a row since
    """

    norms: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    start: tuple[float, float] | None = None
    small: int = 0
    episode: str | None = None
    calm: int = 0


class Finding(NamedTuple):
    """Something a person should know: kind is "exploded", "vanished" or "non_finite"; message says what was seen."""

    kind: str
    message: str


def watch(seen: Seen, loss: float, norm: float, non_finite: bool = False) -> tuple[Seen, Finding | None]:
    """Looks at one update.

        exploded    norm > 100 x the median of the last 200 updates, unless the loss is falling (below 70 % of its median);
                    or > 10^4 x the median of the first 20; or its square overflows
        vanished    for 5 updates: norm < 0.001 x the recent median, or < 2^-23 x the first, or 0 to float32; and the loss
                    did not fall below 3 % of its own median, which would explain it
        non_finite  loss or norm is NaN or inf

    What belongs to an episode does not enter the medians; 20 good updates end it.

    Args:
        seen: `Seen()` before the first update, then what came back.
        loss, norm: of this update; norm before clipping.
        non_finite: what the train step said of it.

    Returns:
        (seen, finding): finding is None if all is well or the episode was told already.
    """
    finding = _judge(seen, loss, norm, non_finite)
    if finding is not None and finding.kind == "vanished" and seen.small + 1 < PERSISTENT:
        return seen._replace(small=seen.small + 1, calm=0), None
    if finding is not None:
        small = seen.small + 1 if finding.kind == "vanished" else 0
        told = seen.episode == finding.kind
        return seen._replace(small=small, episode=finding.kind, calm=0), None if told else finding
    if seen.episode is not None and seen.calm + 1 < CALM:
        return seen._replace(small=0, calm=seen.calm + 1), None
    norms, losses = (*seen.norms, norm)[-WINDOW:], (*seen.losses, loss)[-WINDOW:]
    start = seen.start
    if start is None and len(norms) >= LEARNING:
        start = statistics.median(norms), statistics.median(losses)
    return Seen(norms, losses, start), None


def findings(updates: Iterable[tuple[float, float, bool]]) -> list[tuple[int, Finding]]:
    """Watches a whole series of (loss, norm, non_finite); returns (index, finding) of each episode."""
    seen, found = Seen(), []
    for index, update in enumerate(updates):
        seen, finding = watch(seen, *update)
        found += [] if finding is None else [(index, finding)]
    return found


def seen_in(rows: Iterable[Mapping[str, Any]]) -> Seen:
    """Learns what is usual from the lines of an earlier session, so that a resumed run is watched from its first update."""
    seen = Seen()
    for row in rows:
        if row.get("kind") == "train" and row["loss"] is not None and row["grad_norm"] is not None:
            seen, _ = watch(seen, row["loss"], row["grad_norm"], row["non_finite"] == row["updates"])
    return seen._replace(small=0)


def advice(kind: str, settings: Mapping[str, Any]) -> str:
    """Says what to try, with the numbers of this run: settings may hold lr, clip, k2, cell."""
    lr, clip, k2, cell = (settings.get(name) for name in ("lr", "clip", "k2", "cell"))
    lower_lr = "lower --lr" + (f" (now {lr:g}, try {lr / 3:.2g})" if lr else "")
    clip_more = f"lower --clip (now {clip:g}, try {clip / 4:.2g})" if clip else "set --clip (try 1)"
    smaller = "a smaller --k2" + (f" (now {k2}, try {max(1, k2 // 2)})" if k2 else "") + ": fewer factors to multiply"
    larger = "a larger --k2" + (f" (now {k2}, try {2 * k2})" if k2 else "") + " if what matters lies further back"
    gated = "a gated cell (--cell lstm or gru)" if cell not in ("lstm", "gru") else f"another cell than {cell}"
    if kind == "exploded":
        return f"Try: {clip_more}; {lower_lr}; {smaller}; {gated}."
    if kind == "vanished":
        return (
            f"Try: {gated}; {lower_lr}, if large steps have driven the units into saturation; {larger}. If the loss is as "
            "low as the noise allows, nothing is wrong: there is nothing left to learn."
        )
    return f"Try: {lower_lr}; {clip_more}; {smaller}. If it comes at one place of the data, look for NaN or outliers there."


def _judge(seen: Seen, loss: float, norm: float, non_finite: bool) -> Finding | None:
    if non_finite or not (math.isfinite(loss) and math.isfinite(norm)):
        what = "the loss" if not math.isfinite(loss) else "the gradient"
        return Finding("non_finite", f"{what} is not a finite number (loss {loss:g}, gradient norm {norm:g})")
    if norm > OVERFLOWING:
        return Finding("exploded", f"the gradient norm is {norm:.2g}: its square overflows in float32")
    usual = statistics.median(seen.norms) if len(seen.norms) >= LEARNING else None
    if usual is not None and norm > EXPLODED * usual and not _learning(seen):
        return Finding(
            "exploded", f"the gradient norm is {norm:.2g}, {norm / max(usual, DEAD):.0f} times its usual {usual:.2g}"
        )
    if seen.start is not None and norm > DRIFTED * seen.start[0]:
        times = norm / max(seen.start[0], DEAD)
        return Finding(
            "exploded", f"the gradient norm has grown to {norm:.2g}, {times:.0f} times that of the first updates"
        )
    return _vanished(seen, loss, norm, usual)


def _vanished(seen: Seen, loss: float, norm: float, usual: float | None) -> Finding | None:
    if norm < DEAD and loss != 0:
        return Finding("vanished", f"the gradient norm is {norm:.2g}, zero to float32, at a loss of {loss:.3g}")
    if usual is not None and norm < VANISHED * usual and not _explained(loss, statistics.median(seen.losses)):
        return Finding(
            "vanished", f"the gradient norm fell to {norm:.2g} from its usual {usual:.2g}, the loss did not ({loss:.3g})"
        )
    if seen.start is not None and norm < ROUNDING * seen.start[0] and not _explained(loss, seen.start[1]):
        return Finding(
            "vanished",
            f"the gradient norm is {norm:.2g}, below the rounding of what it was at the start ({seen.start[0]:.2g})",
        )
    return None


def _learning(seen: Seen) -> bool:
    """Tells whether the loss is on its way down: a plateau is being left, and gradients grow because there is slope."""
    return statistics.median(seen.losses[-CALM:]) < FALLING * statistics.median(seen.losses)


def _explained(loss: float, before: float) -> bool:
    return 0 <= loss < LEARNT * before
