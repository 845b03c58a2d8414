"""Groups and colorings of a sparse influence, so that a step is a few small matrix products."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from tbptt.estimators.online.jacobian_sparsity import JacobianSparsity


class Group(NamedTuple):
    """U sets of s carry entries each, every set reached by m parameters (NumPy arrays).

    params:   `[U, m]` the parameters, in the order of `ravel_pytree`
    units:    `[U, s]` the carry entries that they reach, as indices into a batch row of the carry
    direct:   `[U, m, s]` whether a parameter enters the carry entry within one step
    jacobian: `[U, s, s]` whether carry entry j enters carry entry i in one step, at [u, i, j]
    """

    params: Int[np.ndarray, "U m"]
    units: Int[np.ndarray, "U s"]
    direct: Bool[np.ndarray, "U m s"]
    jacobian: Bool[np.ndarray, "U s s"]


class Coloring(NamedTuple):
    """Groups and colors of a sparse influence of n carry entries by P parameters.

    One derivative by all entries of a color together gives each required derivative separately.

    groups:       all entries of the influence that are kept
    unit_color:   `[n]` the color of each carry entry; -1 = no derivative by it is required
    unit_colors:  the number of these colors
    param_color:  `[P]` the color of each parameter; -1 = it reaches no carry entry
    param_colors: the number of these colors
    kept:         the fraction of all reachable entries that is kept; 1 = exact
    """

    groups: tuple[Group, ...]
    unit_color: Int[np.ndarray, " n"]
    unit_colors: int
    param_color: Int[np.ndarray, " P"]
    param_colors: int
    kept: float

    @property
    def entries(self) -> int:
        """Return the number of kept entries, per batch row."""
        return sum(group.direct.size for group in self.groups)


def make_coloring(sparsity: JacobianSparsity, steps: int | None) -> Coloring:
    """Group and color the entries that parameters reach within `steps` steps; None = ever.

    reached_1 = direct;    reached_k = reached_{k-1} + jacobian reached_{k-1}
    """
    direct, jacobian = np.asarray(sparsity.direct), np.asarray(sparsity.jacobian)
    ids, supports = _distinct(direct)
    reachable = _reached(supports, jacobian, None)
    kept = reachable if steps is None else _reached(supports, jacobian, steps)
    is_used = np.any(supports, axis=1)[ids]
    which, kept_rows = np.flatnonzero(is_used), kept[ids][is_used]
    groups = tuple(_groups(which, kept_rows, direct, jacobian))
    total, counts = reachable[ids].sum(), kept[ids].sum()
    unit_color, unit_colors = _color_units(_distinct(kept_rows)[1], jacobian)
    param_color, param_colors = _color_params(ids, supports)
    fraction = float(counts / total) if total else 1.0
    return Coloring(groups, unit_color, unit_colors, param_color, param_colors, fraction)


def _distinct(
    patterns: Bool[np.ndarray, "P n"],
) -> tuple[Int[np.ndarray, " P"], Bool[np.ndarray, "U n"]]:
    """Return the index of each row among the distinct rows, and the distinct rows."""
    packed = np.packbits(patterns, axis=1)
    _, first, ids = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    return ids.reshape(-1), patterns[first]


def _reached(
    supports: Bool[np.ndarray, "U n"], jacobian: Bool[np.ndarray, "n n"], steps: int | None
) -> np.ndarray:
    forward = jacobian.T.astype(np.float32)
    while steps is None or steps > 1:
        wider = supports | np.asarray(supports.astype(np.float32) @ forward > 0)
        if (wider == supports).all():
            break
        supports, steps = wider, None if steps is None else steps - 1
    return supports


def _groups(
    which: np.ndarray, kept: np.ndarray, direct: np.ndarray, jacobian: np.ndarray
) -> Iterator[Group]:
    """Stack supports of equal size that equally many parameters reach."""
    ids, supports = _distinct(kept)
    counts, sizes = np.bincount(ids, minlength=len(supports)), supports.sum(1)
    members = np.split(which[np.argsort(ids, kind="stable")], np.cumsum(counts)[:-1])
    for m, s in sorted({*zip(counts.tolist(), sizes.tolist(), strict=True)}):
        chosen = np.flatnonzero((counts == m) & (sizes == s))
        params = np.stack([members[u] for u in chosen])
        units = np.stack([np.flatnonzero(supports[u]) for u in chosen])
        group_direct = direct[params[:, :, None], units[:, None, :]]
        yield Group(params, units, group_direct, jacobian[units[:, :, None], units[:, None, :]])


def _color_units(
    supports: Bool[np.ndarray, "U n"], jacobian: Bool[np.ndarray, "n n"]
) -> tuple[np.ndarray, int]:
    """Color carry entries so that each required derivative can be read off (Curtis et al. 1974).

    Two entries of a color never enter the same entry, if the derivative of it by one of the two is
    required.
    """
    together = supports.astype(np.float32)
    needed = np.asarray(together.T @ together > 0) & jacobian
    required = np.any(needed, axis=0)
    clash = (needed.T.astype(np.float32) @ jacobian.astype(np.float32)) > 0
    clash = (clash | clash.T) & required & required[:, None]
    color = np.full(len(jacobian), -1)
    for unit in np.flatnonzero(required):
        taken = set(color[clash[unit]].tolist())
        color[unit] = next(c for c in range(len(jacobian)) if c not in taken)
    return color, int(color.max(initial=-1)) + 1


def _color_params(
    ids: Int[np.ndarray, " P"], supports: Bool[np.ndarray, "U n"]
) -> tuple[np.ndarray, int]:
    """Color parameters so that no two of a color enter the same carry entry.

    Parameters of equal supports get distinct colors; disjoint supports share colors.
    """
    counts = np.bincount(ids, minlength=len(supports))
    n = supports.shape[1]
    classes, sizes, class_of = np.zeros((0, n), bool), [], np.full(len(supports), -1)
    for u in np.argsort(-counts, kind="stable"):
        if not supports[u].any():
            continue
        free = np.flatnonzero(~(classes & supports[u]).any(1))
        if not len(free):
            classes, sizes = np.concatenate([classes, np.zeros((1, n), bool)]), [*sizes, 0]
        class_of[u] = free[0] if len(free) else len(classes) - 1
        classes[class_of[u]] |= supports[u]
        sizes[class_of[u]] = max(sizes[class_of[u]], int(counts[u]))
    order = np.argsort(ids, kind="stable")
    offset = np.empty(len(ids), int)  # the number of each parameter among those of equal support
    offset[order] = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
    return np.where(class_of[ids] < 0, -1, starts[class_of[ids]] + offset), int(starts[-1])
