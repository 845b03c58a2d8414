"""Read tables of numbers and texts from files, by rows.

    csv_dialect   separator, names and layout of a CSV file, from its first rows
    scan          a CSV or Parquet file in polars: what each column holds, by all of its rows
    columns       which columns are numbers, time, group and label
    convert       one pass over the rows into arrays on disk: numbers, times, recordings, classes
    runs          stretches of equal groups and labels
    fill          missing values held or interpolated within a recording
    steps         falling, equal, missing and irregular times
    cache         the folder of the arrays, found again by later runs
    npy           rows of an array on disk, by position
    sources       several files as one `Source`: `open_source`
    series        one file in memory: `load_series`

A CSV file has no rows that can be found without reading those before them, and a row group of a
Parquet file must be decoded as a whole. Streams read a few rows at many places. Therefore a table
is converted once, through the streaming engine of polars and in blocks of 65,536 rows, to .npy
arrays in the cache folder, and rows are read from these by position. Memory does not grow with the
file, except for one integer per recording, and with `sort=True`, which holds the whole table. While
it is converted, a table takes twice its size on disk.

Only `scan` and `convert` use polars, and they import it when they are called. .npy files without
further options, and texts, need no polars.
"""
