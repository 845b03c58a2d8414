"""Exceptions of checkpoints."""


class CheckpointDamaged(ValueError):
    """A file of a checkpoint is missing, truncated or changed; the message gives the file."""


class CheckpointMismatch(ValueError):
    """A valid checkpoint is of another model, config or version; the message gives which."""


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; earlier checkpoints are unchanged."""


class FolderInUse(OSError):
    """Another living process uses the folder; the message gives the process."""
