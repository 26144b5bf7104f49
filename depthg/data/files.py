"""Folders, photos and label maps read safely: every failure names the file and says what to do about it."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from depthg.data.colour_masks import MaskColours
from depthg.data.decoding import SKIP, decode, without_setting
from depthg.data.deep import bands_of, holes_of, is_deep, photo_array, to_rgb, values_of
from depthg.data.errors import DataError, show
from depthg.data.kinds import IMAGE_SUFFIXES, suffix_of
from depthg.data.pixels import orientation, rgb_array, stored_orientation
from depthg.data.reading import DEFAULT, Reading
from depthg.data.tiff import TIFF_SUFFIXES, Values, tiff_header, tiff_layout, tiff_values

__all__ = [
    "IMAGE_SUFFIXES", "DataError", "cache_root", "file_stamp", "image_header", "image_size", "label_table",
    "list_files", "map_ids", "missing_pixels", "pixel_count", "read_image", "read_label", "read_layout", "read_values",
    "rgb_array", "show", "stored_values", "tree_error", "without_setting",
]  # fmt: skip

_INVALID = -2  # entry of a label table for an id that the data set does not have


# ---- folders


def list_files(root: str | Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, recursive: bool = False) -> list[Path]:
    """Files below `root` with one of the suffixes (any case), sorted by path; hidden ones are left out.

    Links to folders are followed. Each folder is visited once, so loops end, under its real path if that lies below
    `root`. A broken link is listed, so that reading it fails loudly.

    Raises:
        DataError: a folder cannot be listed.
    """
    root, found, seen = Path(root), [], set()
    folders: list[Path] = [root]
    links: list[Path] = []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = folder.stat()
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"cannot list the folder {show(folder)} ({error.strerror}): correct its permissions or move it away"
            ) from error
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                if recursive:
                    (links if entry.is_symlink() else folders).append(Path(entry.path))
            elif entry.name.lower().endswith(suffixes):
                found.append(Path(entry.path))
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one; costs a look-up for links alone."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def file_stamp(path: Path) -> str:
    """Name, size and modification time: what a cache key knows of a file.

    Raises:
        DataError: there is no such file.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {show(path)} ({error.strerror}); remove the entry or restore the file") from error
    return f"{path.name} {found.st_size} {found.st_mtime_ns}"


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """`cache_dir`, else the environment variable DEPTHG_CACHE, else `depthg` in the user's cache folder."""
    if cache_dir or os.environ.get("DEPTHG_CACHE"):
        return Path(cache_dir or os.environ["DEPTHG_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "depthg"


def tree_error(problem: str, root: str | Path, expected: str) -> FileNotFoundError:
    """The error for a data set that is missing or laid out differently: what was expected and what was found."""
    indented = "\n".join("  " + line for line in expected.strip().splitlines())
    return FileNotFoundError(
        f"{problem}\nexpected below data.root={show(root)}:\n{indented}\nfound:\n  {_describe(Path(root))}"
    )


def _describe(root: Path, limit: int = 12) -> str:
    if root.is_file():
        return f"{show(root)} is a file, not a folder"
    if not root.is_dir():
        parent = next((p for p in root.absolute().parents if p.is_dir()), None)
        nearest = "" if parent is None else f"; its nearest existing parent {_describe(parent, limit)}"
        return f"{show(root)} does not exist{nearest}"
    try:
        entries = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in entries)
    except OSError as error:
        return f"{show(root)} cannot be listed ({error.strerror})"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{show(root)} " + ("is empty" if not names else "holds " + show(", ".join(names[:limit])) + more)


# ---- photos


def read_image(path: str | Path, reading: Reading = DEFAULT) -> np.ndarray:  # uint8 [H, W, 3]
    """Read a photo as RGB, upright (EXIF orientation honoured); of an animation the first frame.

    Transparent pixels are laid over white, pixels without data are black. Files of more than 8 bits are scaled by the
    range of `reading`. By that of their type 65535 becomes 255, and floats must lie in [0, 1] or [0, 255].

    Raises:
        DataError: the file is missing, empty, truncated, too large, or no image, or lacks a band of `reading`.
    """
    return decode(
        path,
        lambda image: photo_array(image, path, reading),
        reading,
        load=False,
        other=lambda limit: to_rgb(tiff_values(path, limit), reading),
    )


def image_size(path: str | Path, reading: Reading = DEFAULT) -> tuple[int, int]:
    """(height, width) of a photo as `read_image` returns it; only the header is read where the format allows.

    Raises:
        DataError: as `read_image`.
    """
    return image_header(path, reading)[0]


def image_header(path: str | Path, reading: Reading = DEFAULT) -> tuple[tuple[int, int], int]:
    """The size as `image_size` gives it, and the EXIF orientation by which `read_image` has turned the stored pixels.

    Raises:
        DataError: as `read_image`.
    """

    def header(image: Image.Image) -> tuple[tuple[int, int], int]:
        turn = stored_orientation(image)
        if image.format == "TIFF":
            image.load()  # Pillow's versions differ in the size told before
        width, height = image.size
        return ((width, height) if orientation(image) >= 5 else (height, width)), turn

    return decode(path, header, reading, load=False, other=lambda limit: tiff_header(path, limit))


def pixel_count(path: str | Path, reading: Reading = DEFAULT) -> int:
    """Number of pixels that the header of a photo tells.

    Raises:
        DataError: as `read_image`.
    """

    def pixels(size: tuple[int, int]) -> int:
        return size[0] * size[1]

    return decode(
        path,
        lambda image: pixels(image.size),
        reading,
        load=False,
        other=lambda limit: pixels(tiff_header(path, limit)[0]),
    )


def read_layout(path: str | Path, reading: Reading = DEFAULT) -> tuple[bool, int, bool]:
    """Whether a photo has more than 8 bits per value, its bands without opacity, and whether it has opacity.

    Raises:
        DataError: as `read_image`.
    """

    def layout(image: Image.Image) -> tuple[bool, int, bool]:
        return (is_deep(image), *bands_of(image))

    return decode(path, layout, reading, load=False, other=lambda limit: tiff_layout(path, limit))


def stored_values(path: str | Path, reading: Reading = DEFAULT) -> Values:
    """All bands of a photo as they are stored, upright.

    Raises:
        DataError: as `read_image`.
    """
    return decode(
        path, lambda image: values_of(image, path, reading), reading, load=False, other=lambda n: tiff_values(path, n)
    )


def missing_pixels(path: str | Path, reading: Reading = DEFAULT) -> np.ndarray | None:  # bool [H, W]
    """Pixels of a photo without data (see `pixels.no_data`), None if there are none; only deep TIFFs can have some.

    Raises:
        DataError: as `read_image`.
    """
    if suffix_of(path) not in TIFF_SUFFIXES or not read_layout(path, reading)[0]:
        return None
    return holes_of(stored_values(path, reading), reading.bands)


def read_values(path: str | Path, reading: Reading = DEFAULT) -> np.ndarray:  # [H, W], the file's own dtype
    """Read the stored values of a one-channel image: 8-bit, 16-bit, 32-bit or float.

    Raises:
        DataError: as `read_image`, or the image holds colours.
    """
    return decode(path, _values, reading)


def _values(image: Image.Image) -> np.ndarray:
    if image.mode not in ("L", "F") and not image.mode.startswith("I"):
        raise DataError(f"expected one grey channel of values, found mode '{image.mode}'; colours do not hold values")
    return np.array(image)


# ---- label maps


def label_table(classes: Mapping[int, int]) -> np.ndarray:  # int64 [largest id + 1]
    """Look-up table of label ids: `classes` maps each id that may occur to its class, or to -1 for void."""
    table = np.full(max(256, max(classes) + 1), _INVALID, np.int64)
    for label_id, label in classes.items():
        table[label_id] = label
    return table


def read_label(
    path: str | Path, table: np.ndarray, reading: Reading = DEFAULT, colours: MaskColours | None = None
) -> np.ndarray:  # int64 [H, W]
    """Read a label map and map its ids by `label_table`, or its colours by `colours`.

    Ids lie in one channel (PNG in mode 'L' or 'P', the palette is ignored) or are the same in three. An image in
    colours counts as ids if its channels are equal and not all of its greys are known colours. Transparent pixels of
    images in colours, and of 'LA', are void.

    Raises:
        DataError: the file is unreadable, holds colours that are not in `colours`, is compressed with loss, or has
            unknown ids.
    """
    stored, opaque = decode(path, lambda image: _label_pixels(image, colours), reading, load=False)
    shown = stored if opaque is None else stored[opaque]
    if stored.ndim == 2:
        label = map_ids(shown, table, path)
    elif not (_equal_channels(shown) and (colours is None or not colours.all_known(shown))):
        label = colours.labels_of(shown, path)
    else:
        label = map_ids(shown[..., 0], table, path)
    if opaque is None:
        return label
    whole = np.full(opaque.shape, -1, np.int64)
    whole[opaque] = label
    return whole


def map_ids(ids: np.ndarray, table: np.ndarray, path: str | Path) -> np.ndarray:  # int64, same shape
    """Classes of an array of label ids by `label_table`; `path` is the file they came from.

    Raises:
        DataError: an id that the table does not know.
    """
    if ids.dtype != np.uint8 and ids.size and (ids.min() < 0 or ids.max() >= len(table)):
        classes = np.where((ids >= 0) & (ids < len(table)), table[np.clip(ids, 0, len(table) - 1)], _INVALID)
    else:
        classes = table[ids]
    if classes.size and classes.min() == _INVALID:
        unknown = np.unique(ids[classes == _INVALID]).tolist()
        listed = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        known = np.flatnonzero(table != _INVALID)
        raise DataError(
            f"{show(path)} has the label ids {listed}, but the data set has only ids {_ranges(known)}: "
            f"correct the label map{SKIP}"
        )
    return classes


def _label_pixels(image: Image.Image, colours: MaskColours | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids [H, W] or colours [H, W, 3] of an opened label map, and where it is not transparent (None: everywhere)."""
    if image.format in ("JPEG", "MPO", "AVIF", "HEIF"):
        kind = "JPEG" if image.format == "MPO" else image.format
        raise DataError(f"label maps must be stored without loss, this one is a {kind}; export the ids as PNG")
    deep = is_deep(image)
    image.load()
    if image.mode == "P" and colours is not None and colours.palettes:
        image = image.convert("RGB")
    if image.mode in ("L", "P", "1") or image.mode.startswith("I"):
        ids = np.array(image)
        return (ids.astype(np.uint8) if ids.dtype == bool else ids), None
    pixels = np.array(image) if image.mode in ("LA", "RGB", "RGBA") and not deep else None
    opaque = pixels[..., -1] > 0 if pixels is not None and image.mode.endswith("A") else None
    if pixels is not None and image.mode == "LA":
        return pixels[..., 0], opaque
    if pixels is None or (colours is None and not _equal_channels(pixels if opaque is None else pixels[opaque])):
        raise DataError(
            f"label maps must hold one id per pixel (PNG in mode 'L' or 'P'), this one has mode '{image.mode}'; "
            f"convert its colours to ids first, or write them as #rrggbb into the class file of data=folder"
        )
    return pixels[..., :3], opaque


def _equal_channels(rgb: np.ndarray) -> bool:  # [..., 3]
    return bool((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all())


def _ranges(ids: np.ndarray) -> str:
    """Sorted ids as text: 0..11, 255."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
