"""How a cell is taken through time and back: the scan, the backward pass with the weights out of its loop, the plans."""
