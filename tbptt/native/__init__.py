"""The loops over time of small layers as one operation each on the CPU, where XLA's own loop mostly waits for itself."""

from tbptt.native.choice import loops_of as loops_of
