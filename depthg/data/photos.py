"""Photos that a command line names: files, folders and quoted patterns."""

from __future__ import annotations

import glob
import itertools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from depthg.data.files import list_files, show
from depthg.data.kinds import IMAGE_SUFFIXES, is_photo, not_used


def find_photos(inputs: Sequence[str], out: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """Photos of files, folders (with subfolders) and quoted patterns, with their paths relative to what was given.

    Pictures below `out` are skipped if `out` lies inside a searched folder: they are results of earlier runs. A warning
    counts by kind what a searched folder holds beside photos.

    Returns:
        the photos with their relative paths, each photo once, and a line for every missing input.

    Raises:
        DataError: a folder cannot be listed.
        ValueError: `out` is one of the folders.
    """
    home, problems = real_path(out), []
    found: dict[Path, tuple[Path, str]] = {}
    for text in inputs:
        if not text:  # most likely a variable that is not set; as a path it would be the working folder
            problems.append("one of the inputs is empty text: give files, folders or patterns")
            continue
        path, searched = Path(text).expanduser(), True
        if path.is_dir():
            base, photos = path, list_files(path, ("",), recursive=True)
        elif os.path.lexists(path) or not glob.has_magic(text):
            base, photos, searched = path.parent, [path], False
        else:
            base, photos = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)), _matches(path)
        if searched and real_path(base) == home:
            raise ValueError(f"--out {show(out)} is the folder of the photos: choose another folder")
        if searched and home.is_relative_to(real_path(base)):
            photos = [photo for photo in photos if not real_path(photo).is_relative_to(home)]
        if searched:
            other = not_used(photo for photo in photos if not is_photo(photo))
            photos = [photo for photo in photos if is_photo(photo)]
            if other:
                warnings.warn(f"{show(text)}: {len(photos):,} photos; not used: {other}", stacklevel=2)
        if not photos:
            problems.append(f"{show(text)}: no photos there ({' '.join(IMAGE_SUFFIXES)})")
        for photo in photos:
            if os.path.lexists(photo):
                found.setdefault(real_path(photo), (photo, photo.relative_to(base).as_posix()))
            else:
                problems.append(f"{show(photo)}: there is no such file or folder")
    return list(found.values()), problems


def real_path(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises on a link to itself before Python 3.13


def _matches(pattern: Path) -> list[Path]:
    photos: list[Path] = []
    for match in sorted(map(Path, glob.glob(str(pattern), recursive=True))):
        if match.is_dir():
            photos += list_files(match, ("",), recursive=True)
        else:
            photos.append(match)
    return list(dict.fromkeys(photos))  # ** matches folders and the files in them
