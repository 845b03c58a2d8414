"""From which sizes on compiled loops run, and in how many parts. Every number is of an LSTM's gradient on two cores with
AVX-512, 2026-11-26, unless it says otherwise: time of the other way over time of this one."""

from tbptt.cores import cores_of_a_device

# For one lane, laying out the weights for tiles costs more than tiles save.
TILED = 2  # lanes
# One lane in halves, which exchange once a step. One thread over two, a training epoch as one program, another machine with
# two cores and AVX-512, 2026-11-27, at units x steps: LSTM 0.9 at 64 x 50, 1.3 at 128 x 50, 1.2 at 192 x 50, 1.4 at 256 x
# 100, 1.6 at 384 x 50 and 512 x 50, 1.1 at 1,024 x 20; GRU 0.9 at 64 x 50, 1.1 at 128 x 50, 1.5 at 256 x 100; Elman 0.9 at
# 128 x 50, 1.4 at 192 x 50, 1.5 at 256 x 20. Called step by step, while Python prepares the next call on one of the two
# cores, mostly 0.91 to 1.06. Fewer products in all than LEAST_HALVED were not measured.
HALVED, LEAST_HALVED = 32_000, 1_000_000  # products of a step, of an operation
# A part reads all weights, so few lanes are not worth one; to wake its thread took 0.02 ms, as a million products do. One
# part over two, at lanes x units x steps: 0.6 at 2 x 128 x 50, 0.6 at 2 x 512 x 50, 0.8 at 4 x 512 x 50, 1.0 at 4 x 128 x
# 50; 1.4 at 8 x 128 x 50 and 20 x 256 x 35, 1.5 at 32 x 128 x 50, 1.6 at 16 x 1,024 x 20.
FEWEST, LEAST = 4, 8_000_000  # lanes of a part, products of two numbers of a part
# Units up to which loops in one part are ahead of the scan, whose products use all cores: their weights fit in a core's
# cache. Scan over loops at 4 x 128, 2 x 256, 4 x 256, 6 x 256: 1.0, 1.4, 1.4, 1.4 (GRU at 2 x 256, 6 x 256: 1.2, 1.0; Elman
# 1.3, 0.9); at 2 x 512, 4 x 512: 0.9, 0.9. One lane, in halves, is nearly always ahead: at 384, 512, 1,024 units
# LSTM 1.35, 1.35, 1.3, GRU 1.8, 1.3, 1.2, Elman 1.7, 1.8, 1.8 in one program; step by step 1.04, 0.93, 1.1; 1.4, 0.96,
# 1.2; 1.1, 1.1, 1.2.
# In as many parts as there are cores they are ahead of it nearly everywhere: LSTM at 8 x 128, 32 x 128, 20 x 256, 8 x 512,
# 64 x 512, 16 x 1,024, 256 x 512: 1.5, 1.8, 1.4, 1.1, 1.1, 1.8, 1.4; GRU at 8 x 128, 32 x 256, 8 x 512, 64 x 512, 16 x
# 1,024: 1.3, 1.2, 1.0, 1.1, 1.2, but 0.9 at 20 x 256; Elman at 32 x 256, 8 x 512, 64 x 512, 256 x 256: 1.0, 1.1, 1.2, 1.0.
# On one core they always are: 1.01 to 1.3 for several lanes, 2.7 for one of 512 units (another machine). More cores than
# two were not measured.
NARROW = 256


def loops_fit(lanes: int, units: int) -> bool:
    """Says whether compiled loops serve a layer of so many lanes and units."""
    cores = cores_of_a_device()
    return cores == 1 or lanes == 1 or units <= NARROW or lanes >= FEWEST * cores


def parts_of(lanes: int, products: int) -> int:
    """Returns in how many parts an operation runs, of which a lane takes so many products of two numbers."""
    return max(1, min(cores_of_a_device(), lanes // FEWEST, lanes * products // LEAST))


def halves_of(lanes: int, steps: int, products: int) -> int:
    """Returns in how many halves an operation runs whose weights are read as they are; products: of one step."""
    worth = products >= HALVED and steps * products >= LEAST_HALVED
    return 2 if lanes == 1 and cores_of_a_device() > 1 and worth else 1
