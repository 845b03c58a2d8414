"""The Pallas backend: an unroll function that runs a block of steps in one GPU kernel.

See README.md in this folder.
"""

from tbptt.backends.pallas_gpu.fused import unroll as unroll
