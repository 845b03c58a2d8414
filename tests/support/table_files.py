"""A table of numbers, and its files in every format."""

import numpy as np
import polars as pl

ROWS = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)


def write(path, rows=ROWS, names=("a", "b", "c")):
    if path.name == "f.npy":
        np.save(path, np.asfortranarray(rows))
    elif path.name == "ints.npy":
        np.save(path, (rows * 100).astype(np.int16))
    elif path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".csv":
        lines = [", ".join(names), *(",".join(repr(float(value)) for value in row) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        columns = {name: rows[:, i] for i, name in enumerate(names)}
        pl.DataFrame(columns).write_parquet(path, row_group_size=max(1, len(rows) // 7))
    return path
