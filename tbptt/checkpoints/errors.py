"""What can be wrong with checkpoints, each with a name of its own."""


class CheckpointDamaged(ValueError):
    """A checkpoint is not what was written: a file is missing, cut short or changed; the message says which."""


class CheckpointMismatch(ValueError):
    """A checkpoint is sound and of something else: another model, other settings, another version; it says what differs."""


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; those before it stay as they are."""


class FolderInUse(OSError):
    """Another process that is alive has the folder; the message says which."""
