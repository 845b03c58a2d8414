"""Is there a file to read?"""

from pathlib import Path


def check_file(path: Path, wanted: str) -> None:
    """Returns if `path` is a file that is there.

    Args:
      wanted: who wants what, for the message: "load_series wants one file".

    Raises:
      IsADirectoryError, FileNotFoundError: names the path, and what was wanted or where was looked.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; {wanted} in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path} (looked in the folder {path.absolute().parent})")
