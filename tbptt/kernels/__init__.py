"""The steps of a recurrent layer fused into one GPU kernel a block of steps, where a loop of launches would wait."""

from tbptt.kernels.unroll import fused_unroll as fused_unroll
