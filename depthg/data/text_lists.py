"""Text files that people write: lists of photos and of classes, from any editor of any system."""

import codecs
import re
from pathlib import Path

from depthg.data.files import DataError, show


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a text file without blanks at both ends; line ends of Linux, Windows and old Macs.

    The text is UTF-8, or UTF-16 where a byte order mark says so.

    Raises:
        DataError: the file is no such text, or cannot be read; `what` says what it should be, as "list of photos".
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the list {show(path)} ({error.strerror})") from error
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if utf16 else "UTF-8"
        raise DataError(f"{show(path)} is no {what}: it is not {kind} text ({error.reason})") from error
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text)]


def spellings(name: str) -> list[str]:
    """Ways to read a photo's name in a list, the first that fits counts: as it stands, and with Windows' separators."""
    slashes = name.replace("\\", "/")
    return list(dict.fromkeys([name, slashes, slashes.removeprefix("./")]))
