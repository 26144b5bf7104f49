"""The error of files that cannot be used, and paths as text."""

import os


class DataError(ValueError):
    """A file of a data set cannot be used; the message names the file and the fix."""


def show(path: str | os.PathLike) -> str:
    """A path as text that can always be printed (file names need not be valid Unicode)."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")
