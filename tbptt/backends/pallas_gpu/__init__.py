"""The Pallas backend: `unroll` with all steps of a block in one GPU kernel. See README.md in this folder."""

from tbptt.backends.pallas_gpu.fused import unroll as unroll
