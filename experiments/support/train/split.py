"""Split the data of a run into a training, a validation and a test part."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tbptt.data import Source, part, pick
from tbptt.data.tables.bad_samples import last_good_row
from tbptt.data.tables.recordings import Class, class_value

SHOWN = 20  # most groups that a message names


class PartEnds(NamedTuple):
    """Rows [0, train), [train, valid) and [valid, test) of a source, test = all rows."""

    train: int
    valid: int
    test: int


class Split(NamedTuple):
    """A source whose rows are in the order of its parts; for the other fields see `RunData`."""

    source: Any  # a Source
    ends: PartEnds
    descriptions: dict[str, str]
    rows_of: Callable[[np.ndarray], np.ndarray]


def split(source: Source, config: Any) -> Split:
    """Split a source according to the flags of experiments.train.

        --hold-out COL=A,B   test: the groups A and B; validation: the last ones of the other groups
        --test-data FILES    test: these files, the last rows of the source; validation: the end of
                             --data
        otherwise            validation and test: the end of the data

    For --task classify no recording is divided.

    Raises:
        ValueError: a part would be empty or too short; a value of --hold-out does not occur; with
            --hold-out or --test-data, the test part has a class that no other recording has.
    """
    check_fractions(config)
    own = config.hold_out is not None or bool(config.test_data)
    is_classify = config.task == "classify"
    if config.hold_out is not None:
        found = _by_groups(source, config)
    elif config.test_data:
        found = _by_files(source, config)
    else:
        ends = _in_time(source.lengths, config, config.test)
        found = Split(source, ends, _shown(source, ends, config), np.asarray)
    if config.task == "forecast":
        _check_horizon(found, config)
    if is_classify and own:
        _check_classes(found, config)
    return found


def hold_out(config: Any) -> tuple[str, str]:
    """Return column and values of --hold-out; ("", "") without the flag."""
    if config.hold_out is None:
        return "", ""
    column, _, values = config.hold_out.partition("=")
    if not column or not values:
        raise ValueError(
            "--hold-out must be a column and its values, such as person=9,10; got "
            f"{config.hold_out!r}"
        )
    return column, values


def check_files(config: Any) -> None:
    """Raise a ValueError if the flags do not fit each other, or if there are too few files."""
    column, _ = hold_out(config)
    if column and config.test_data:
        raise ValueError(
            f"--hold-out {config.hold_out} and --test-data {config.test_data[0]} both give a test "
            "part; omit one of them"
        )
    if twice := [path for path in config.test_data if path in config.data]:
        raise ValueError(f"--test-data {twice[0]} is in --data, too; remove it from one of them")
    if column and column == config.target:
        raise ValueError(
            f"--hold-out must name a column that is not the target; got {column!r} for both"
        )
    if config.task == "classify" and not (column or config.group) and config.gaps == "keep":
        test = 0.0 if config.test_data else config.test
        _in_time((1,) * len(config.data), config, test)  # each file is one recording


def check_fractions(config: Any) -> None:
    """Raise a ValueError unless --valid and --test are fractions that leave some training data."""
    own = "--hold-out" if config.hold_out else "--test-data" if config.test_data else ""
    if own and config.task == "characters":
        raise ValueError(
            f"{own} is for tables; --task characters tests the end of the text. Omit it, and score "
            "another text by experiments.predict --score"
        )
    default = type(config).__dataclass_fields__["test"].default
    if own and config.test != default:
        raise ValueError(
            f"--test {config.test:g} is a fraction of --data, but {own} gives the test part; omit "
            "one of them"
        )
    test = 0 if own else config.test
    if not (0 < config.valid and (own or 0 < test) and config.valid + test < 1):
        raise ValueError(
            "--valid and --test, the fractions of the data that are held out, must be above 0 and "
            f"their sum below 1; got {config.valid:g} and {config.test:g}"
        )


def _by_groups(source: Any, config: Any) -> Split:
    """Test on the groups of --hold-out, and validate on the last ones of the other groups."""
    column, values = hold_out(config)
    groups = [class_value(g if isinstance(g, str) else g[0]) for g in source.groups]
    known = list(dict.fromkeys(groups))
    one = class_value(values)  # a value that contains a comma
    test = [one] if one in known else [class_value(value.strip()) for value in values.split(",")]
    if unknown := [value for value in test if value not in known]:
        raise ValueError(
            f"--hold-out {config.hold_out}: no row has {_named(column, unknown[:1])}; the values "
            f"are {_listed(known)}"
        )
    rest = [group for group in known if group not in test]
    n = max(1, round(len(rest) * config.valid))
    if len(rest) - n < 1:
        raise ValueError(
            f"--hold-out {config.hold_out} leaves {len(rest)} of {len(known)} groups, of which "
            f"{n} would be for validation (--valid {config.valid:g}) and none for training. Hold "
            "out fewer groups" + (", or lower --valid" if len(rest) > 1 else "")
        )
    chosen = {"training": rest[:-n], "validation": rest[-n:], "test": test}
    order = [[i for i, g in enumerate(groups) if g in part] for part in chosen.values()]
    picked = pick(source, [i for part in order for i in part])
    rows = np.cumsum([sum(source.lengths[i] for i in part) for part in order])
    ends = PartEnds(*rows.tolist())
    descriptions = {
        name: f"{_named(column, part)}, {_row_count(picked, *rows)}"
        for (name, part), rows in zip(chosen.items(), _ranges(ends), strict=True)
    }
    return Split(picked, ends, descriptions, picked.rows_of)


def _by_files(source: Source, config: Any) -> Split:
    """Test on the recordings of --test-data, which are the last ones of the source."""
    edges = np.cumsum((0, *source.lengths)).tolist()
    begin = f"{config.test_data[0]}, row "
    first = next(i for i, row in enumerate(edges[:-1]) if source.path_of(row).startswith(begin))
    train, valid, _ = _in_time(source.lengths[:first], config, 0.0)
    ends = PartEnds(train, valid, edges[-1])
    descriptions = _shown(source, ends, config)
    files = ", ".join(map(str, config.test_data))
    descriptions["test"] = f"{files}, {_row_count(source, valid, edges[-1])}"
    return Split(
        source, ends, descriptions, lambda rows: np.where(rows < valid, rows, rows - valid)
    )


def _in_time(lengths: Sequence[int], config: Any, test: float) -> PartEnds:
    """Hold out the end of the rows; for --task classify, whole recordings at the end."""
    total = sum(lengths)
    if config.task == "classify":
        n, edges = len(lengths), np.cumsum((0, *lengths)).tolist()
        validated, tested = math.ceil(n * config.valid), math.ceil(n * test)
        if n - validated - tested < 1:
            parts = "three parts" if test else "two parts, training and validation"
            raise ValueError(
                f"--task classify needs at least one whole recording in each of the {parts}; "
                f"got {n} in total. Give several files, or name the column that separates the "
                "recordings by --group"
            )
        return PartEnds(edges[n - validated - tested], edges[n - tested], total)
    train, valid = int(total * (1 - config.valid - test)), int(total * (1 - test))
    least = max(2, config.horizon + 1) if config.task == "forecast" else 2
    sizes = [train, valid - train, *([total - valid] if test else [])]
    if min(sizes) < least:
        what = (
            f"a forecast {config.horizon} rows ahead (--horizon)"
            if config.task == "forecast"
            else "a prediction"
        )
        tested = f" and {total - valid} for the test (--test {test:g})" if test else ""
        raise ValueError(
            f"{what} needs at least {least} rows in each part; the {total} rows of the data give "
            f"{train} for training, {valid - train} for validation (--valid {config.valid:g})"
            f"{tested}. Give more data, "
            f"{'smaller' if train < least else 'larger'} fractions, or a lower --horizon"
        )
    return PartEnds(train, valid, total)


def _check_horizon(found: Split, config: Any) -> None:
    """Raise a ValueError if no recording of a part is longer than the horizon."""
    for name, rows in zip(found.descriptions, _ranges(found.ends), strict=True):
        longest = max(part(found.source, *rows).lengths)
        if longest <= config.horizon:
            raise ValueError(
                f"a forecast {config.horizon} rows ahead (--horizon) needs a recording of at least "
                f"{config.horizon + 1} rows in each part; the longest one of the {name} part "
                f"({found.descriptions[name]}) has {longest}. Lower --horizon, or choose "
                "other parts"
            )


def _check_classes(found: Split, config: Any) -> None:
    """Raise a ValueError if the test part has a class that no other recording has."""
    source: Any = found.source
    edges, seen = np.cumsum((0, *source.lengths)).tolist(), set()
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        row = last_good_row(source, begin, end)
        if row is None:
            continue
        label = int(source.read(row, row + 1)[0, source.names.index(config.target)])
        if begin < found.ends.valid:
            seen.add(label)
        elif label not in seen:
            own = "--hold-out" if config.hold_out else "--test-data"
            raise ValueError(
                f"{source.path_of(row)}, column {config.target!r} is {source.classes[label]}, a "
                f"class of no recording for training or validation "
                f"({_listed([source.classes[i] for i in sorted(seen)])}). Remove these rows from "
                f"the test ({own}), or train on recordings of the class, too"
            )


def _shown(source: Source, ends: PartEnds, config: Any) -> dict[str, str]:
    names = ("training", "validation", "test")
    unit = "bytes" if config.task == "characters" else "rows"
    return {
        name: f"{unit} {start} to {stop - 1}, {_row_count(source, start, stop, unit)}"
        for name, (start, stop) in zip(names, _ranges(ends), strict=True)
    }


def _row_count(source: Source, start: int, stop: int, unit: str = "rows") -> str:
    """Return "600 rows" or "600 rows in 3 recordings"."""
    n = len(part(source, start, stop).lengths)
    more = f" in {n} recordings" if len(source.lengths) > 1 else ""
    return f"{stop - start} {unit}" + (more if n > 1 else more.removesuffix("s"))


def _ranges(ends: PartEnds) -> list[tuple[int, int]]:
    return [(0, ends.train), (ends.train, ends.valid), (ends.valid, ends.test)]


def _named(column: str, values: Sequence[Class]) -> str:
    """Return "shop 3, 4" for the values 3 and 4, and "shop 3, shop 4" for "shop 3" and "shop 4"."""
    begins = re.compile(re.escape(column) + r"(?![^\W\d_])", re.IGNORECASE)  # as a whole word
    known = all(begins.match(str(value)) for value in values)
    return _listed(values) if known else f"{column} {_listed(values)}"


def _listed(values: Sequence[Class]) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more
