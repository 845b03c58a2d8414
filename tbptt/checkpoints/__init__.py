"""Save and restore the whole state of a run: asynchronous, atomic and verified by digests."""

from tbptt.checkpoints.format import CheckpointDamaged as CheckpointDamaged
from tbptt.checkpoints.format import CheckpointMismatch as CheckpointMismatch
from tbptt.checkpoints.format import CheckpointNotWritten as CheckpointNotWritten
from tbptt.checkpoints.format import FolderInUse as FolderInUse
from tbptt.checkpoints.manager import Checkpoints as Checkpoints
from tbptt.checkpoints.restore import Restored as Restored
from tbptt.checkpoints.restore import finished as finished
from tbptt.checkpoints.restore import newest_good as newest_good
from tbptt.checkpoints.restore import restore as restore
