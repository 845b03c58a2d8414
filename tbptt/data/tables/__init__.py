"""Read tables of numbers and texts from files, by rows.

    csv_layout    separator, names and layout of a CSV file; its blocks and its faults
    csv_file      what the columns of a CSV file hold
    scan          a table in polars; which columns are numbers, time, group and label
    convert       one pass over the rows into arrays on disk: numbers, times, recordings, classes
    recordings    groups, labels, and falling, equal, missing or irregular times
    bad_samples   missing values: refused, masked, counted, held or interpolated
    table         a file as rows that are read by position; .npy files
    sources       several files as one `Source`: `open_source`
    series        one file in memory: `load_series`
    text          texts as bytes

A CSV file has no rows that can be found without reading those before them, and a row group of a
Parquet file must be decoded as a whole. Streams read a few rows at many places. Therefore a table
is converted once, in blocks that polars parses, to .npy arrays in the cache folder, and rows are
read from these by position. Memory does not grow with the file, except for one integer per
recording, one column where missing values are filled in, and the whole table with `sort=True`.

polars is imported when a table is opened. .npy files without further options, and texts, do not
need it.
"""
