"""How a sparse influence is laid out: parameters of equal reach together, so that a step is small matrix products."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from tbptt.estimators.online.jacobian_sparsity import Pattern


class Group(NamedTuple):
    """U supports of s numbers of the carry each, every one reached by m parameters (NumPy arrays).

    params:   `[U, m]` which ones, in the order of ravel_pytree
    units:    `[U, s]` the numbers that they reach, in the order of a lane's row
    direct:   `[U, m, s]` whether within one step
    jacobian: `[U, s, s]` whether number j enters number i in one step, at [u, i, j]
    """

    params: Int[np.ndarray, "U m"]
    units: Int[np.ndarray, "U s"]
    direct: Bool[np.ndarray, "U m s"]
    jacobian: Bool[np.ndarray, "U s s"]


class Layout(NamedTuple):
    """A sparse influence of n numbers by P parameters.

    groups: all entries that are kept
    unit_colour, unit_colours:   `[n]`, and how many. One derivative by all numbers of a colour together gives each that a
                                 group needs apart from the others; -1: none is needed
    param_colour, param_colours: `[P]`, and how many: the same for parameters; -1: reaches nothing
    kept:   the share of all reachable entries that is kept; 1 = exact
    """

    groups: tuple[Group, ...]
    unit_colour: Int[np.ndarray, " n"]
    unit_colours: int
    param_colour: Int[np.ndarray, " P"]
    param_colours: int
    kept: float

    @property
    def entries(self) -> int:
        """How many entries are kept, per lane."""
        return sum(group.direct.size for group in self.groups)


def make_layout(pattern: Pattern, steps: int | None) -> Layout:
    """Lays out what parameters reach within `steps` steps; None: ever.

    reach_1 = direct;    reach_k = reach_{k-1} + jacobian reach_{k-1}
    """
    direct, jacobian = np.asarray(pattern.direct), np.asarray(pattern.jacobian)
    ids, supports = _distinct(direct)
    everything = _reached(supports, jacobian, None)
    kept = everything if steps is None else _reached(supports, jacobian, steps)
    alive = np.any(supports, axis=1)
    which, kept_ids = np.flatnonzero(alive[ids]), kept[ids][alive[ids]]
    groups = tuple(_groups(which, kept_ids, direct, jacobian))
    total, counts = everything[ids].sum(), kept[ids].sum()
    unit_colour, unit_colours = _colour_units(_distinct(kept_ids)[1], jacobian)
    param_colour, param_colours = _colour_params(ids, supports)
    share = float(counts / total) if total else 1.0
    return Layout(groups, unit_colour, unit_colours, param_colour, param_colours, share)


def _distinct(patterns: Bool[np.ndarray, "P n"]) -> tuple[Int[np.ndarray, " P"], Bool[np.ndarray, "U n"]]:
    """Finds the distinct rows, and which one each row is."""
    _, first, ids = np.unique(np.packbits(patterns, axis=1), axis=0, return_index=True, return_inverse=True)
    return ids.reshape(-1), patterns[first]


def _reached(supports: Bool[np.ndarray, "U n"], jacobian: Bool[np.ndarray, "n n"], steps: int | None) -> np.ndarray:
    forward = jacobian.T.astype(np.float32)
    while steps is None or steps > 1:
        wider = supports | np.asarray(supports.astype(np.float32) @ forward > 0)
        if (wider == supports).all():
            break
        supports, steps = wider, None if steps is None else steps - 1
    return supports


def _groups(which: np.ndarray, kept: np.ndarray, direct: np.ndarray, jacobian: np.ndarray):
    """Puts supports of one size, reached by equally many parameters, side by side."""
    ids, supports = _distinct(kept)
    counts, sizes = np.bincount(ids, minlength=len(supports)), supports.sum(1)
    members = np.split(which[np.argsort(ids, kind="stable")], np.cumsum(counts)[:-1])
    for m, s in sorted({*zip(counts.tolist(), sizes.tolist(), strict=True)}):
        chosen = np.flatnonzero((counts == m) & (sizes == s))
        params = np.stack([members[u] for u in chosen])
        units = np.stack([np.flatnonzero(supports[u]) for u in chosen])
        at = direct[params[:, :, None], units[:, None, :]]
        yield Group(params, units, at, jacobian[units[:, :, None], units[:, None, :]])


def _colour_units(supports: Bool[np.ndarray, "U n"], jacobian: Bool[np.ndarray, "n n"]) -> tuple[np.ndarray, int]:
    """Colours numbers so that no needed derivative is seen mixed with another: two of a colour never enter one number
    by which either of them is needed (Curtis, Powell and Reid 1974)."""
    together = supports.astype(np.float32)
    needed = np.asarray(together.T @ together > 0) & jacobian
    probed = np.any(needed, axis=0)
    clash = (needed.T.astype(np.float32) @ jacobian.astype(np.float32)) > 0
    clash = (clash | clash.T) & probed & probed[:, None]
    colour = np.full(len(jacobian), -1)
    for unit in np.flatnonzero(probed):
        taken = set(colour[clash[unit]].tolist())
        colour[unit] = next(c for c in range(len(jacobian)) if c not in taken)
    return colour, int(colour.max(initial=-1)) + 1


def _colour_params(ids: np.ndarray, supports: Bool[np.ndarray, "U n"]) -> tuple[np.ndarray, int]:
    """Colours parameters so that no two of a colour enter one number: of equal supports each has a colour of its own,
    and disjoint supports share."""
    counts = np.bincount(ids, minlength=len(supports))
    classes, heights, of = np.zeros((0, supports.shape[1]), bool), [], np.full(len(supports), -1)
    for u in np.argsort(-counts, kind="stable"):
        if not supports[u].any():
            continue
        free = np.flatnonzero(~(classes & supports[u]).any(1))
        if not len(free):
            classes, heights = (
                np.concatenate([classes, np.zeros_like(classes[:1], shape=(1, classes.shape[1]))]),
                heights + [0],
            )
        of[u] = free[0] if len(free) else len(classes) - 1
        classes[of[u]] |= supports[u]
        heights[of[u]] = max(heights[of[u]], int(counts[u]))
    order = np.argsort(ids, kind="stable")
    place = np.empty(len(ids), int)
    place[order] = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)  # its number among equals
    starts = np.concatenate([[0], np.cumsum(heights)]).astype(int)
    return np.where(of[ids] < 0, -1, starts[of[ids]] + place), int(starts[-1])
