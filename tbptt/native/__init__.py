"""The loops over time as one operation each on the CPU: for small layers XLA's own loop mostly waits for itself."""

from tbptt.native.choice import loops_of as loops_of
