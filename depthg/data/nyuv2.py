"""NYU Depth V2: indoor photos of a Kinect with dense depth, 894 ids merged into the usual 40 classes."""

import math
from pathlib import Path

import numpy as np

from depthg.data.base import Dataset, FileSplit, Split, drop_unreadable
from depthg.data.colours import class_palette
from depthg.data.files import DataError, label_table, map_ids, show, tree_error
from depthg.data.matlab import read_mat
from depthg.data.pairing import count_note

CLASSES = {  # the 40 classes of Gupta et al. (2013) in label order; up to "bag" each is one of the 894 ids
    "wall": 21,
    "floor": 11,
    "cabinet": 3,
    "bed": 157,
    "chair": 5,
    "sofa": 83,
    "table": 19,
    "door": 28,
    "window": 59,
    "bookshelf": 88,
    "picture": 64,
    "counter": 7,
    "blinds": 80,
    "desk": 36,
    "shelves": 42,
    "curtain": 89,
    "dresser": 169,
    "pillow": 119,
    "mirror": 122,
    "floor mat": 143,
    "clothes": 141,
    "ceiling": 4,
    "books": 85,
    "refrigerator": 17,
    "television": 172,
    "paper": 15,
    "towel": 135,
    "shower curtain": 123,
    "box": 26,
    "whiteboard": 45,
    "person": 331,
    "night stand": 158,
    "toilet": 124,
    "sink": 24,
    "lamp": 144,
    "bathtub": 136,
    "bag": 55,
}
STRUCTURE = """
8 25 33 38 51 53 57 58 62 65 79 94 104 112 134 153 215 216 223 225 238 241 242 256 295 301 339 342 354 363 372 380 392
408 412 453 456 463 477 497 541 550 553 567 573 582 591 609 612 615 642 645 657 658 659 663 667 668 686 700 702 777 778
782 850 861 868 874
"""
FURNITURE = """
12 43 48 50 87 106 111 161 163 174 183 204 214 219 221 224 236 262 278 291 298 313 343 344 356 359 373 393 401 414 418
419 430 443 444 447 448 457 458 460 462 475 479 485 486 493 494 498 499 509 510 515 521 524 540 549 551 554 556 558 576
580 608 625 703 734 770 772 797 800 803 804 813 814 815 820 829 835 858 863 882 892
"""
LARGEST_ID = 894
COUNTS = {"train": 795, "val": 654}
FOV_DEG = 2 * math.degrees(math.atan(320 / 518.86))  # focal length of the colour camera in pixels at 640 pixels
FILE, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
EXPECTED = f"""
{FILE}    the labelled photos (1,449; HDF5): images, depths, labels
{SPLITS}                  trainNdxs (795) and testNdxs (654), numbers from 1
"""


class NyuV2(Dataset):
    """The labelled photos of NYU Depth V2, with depth in metres; `val` is the official test split.

    Args:
        root: the folder that holds the two files; never written to.
        on_error: "raise", or "skip" to leave out (and report) photos that cannot be used.

    Raises:
        FileNotFoundError: a file is missing.
        DataError: a file is damaged or does not hold what it should.
        ImportError: h5py is not installed.
    """

    def __init__(self, root: str | Path, on_error: str = "raise"):
        root = Path(root).expanduser()
        for name in (FILE, SPLITS):
            if not (root / name).is_file():
                raise tree_error(f"no file {root / name}", root, EXPECTED)
        total = _check_file(root / FILE)
        splits = {
            "train": _split(root, "trainNdxs", total, on_error),
            "val": _split(root, "testNdxs", total, on_error),
        }
        notes = [count_note(part, SPLITS, len(splits[part]), count) for part, count in COUNTS.items()]
        super().__init__(
            name="nyuv2",
            classes=(*CLASSES, "other structure", "other furniture", "other prop"),
            palette=class_palette(len(CLASSES) + 3),
            train=splits["train"],
            val=splits["val"],
            note="; ".join(notes),
        )


class Hdf5Split(FileSplit):
    """Some photos of the HDF5 file; arrays lie in MATLAB's order, width before height."""

    def __init__(self, path: Path, numbers: np.ndarray):
        names = [f"{number:04}" for number in numbers]
        super().__init__([path] * len(numbers), root=path.parent, names=names, table=fine_table(), fov=FOV_DEG)
        self.path, self.numbers = path, numbers
        self.relative = [f"{name}.png" for name in names]  # depth maps of depth.source=folder go by these

    def image(self, index: int) -> np.ndarray:  # uint8 [H, W, 3]
        return np.ascontiguousarray(self._read("images", index).transpose(2, 1, 0))

    def size_and_turn(self, index: int) -> tuple[tuple[int, int], int]:
        return self._read("images", index, shape_only=True)[:0:-1], 1

    def label(self, index: int) -> np.ndarray:  # int64 [H, W]
        return map_ids(np.ascontiguousarray(self._read("labels", index).T), self.table, self.path)

    def depth(self, index: int) -> np.ndarray:  # float32 [H, W]
        return np.ascontiguousarray(self._read("depths", index).T, dtype=np.float32)

    def _read(self, key: str, index: int, shape_only: bool = False):
        number = int(self.numbers[index]) - 1
        return _open(self.path, lambda file: file[key].shape[1:] if shape_only else file[key][number])


def _open(path: Path, read):
    """`read(file)` of an HDF5 file that is opened for each call: no handle is shared between threads or processes."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError("data=nyuv2 reads HDF5 and needs h5py: python -m pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            return read(file)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot read {show(path)}: {error}; it is damaged or no {FILE}") from error


def _check_file(path: Path) -> int:
    shapes = _open(path, lambda file: {key: tuple(file[key].shape) for key in ("images", "depths", "labels")})
    photos, channels, width, height = shapes["images"] if len(shapes["images"]) == 4 else (0, 0, 0, 0)
    if channels != 3 or {shapes["depths"], shapes["labels"]} != {(photos, width, height)}:
        raise DataError(
            f"{show(path)} holds {shapes}; expected images [photos, 3, width, height], depths and labels "
            f"[photos, width, height]"
        )
    return photos


def _split(root: Path, name: str, total: int, on_error: str) -> Split:
    numbers = read_mat(root / SPLITS, name).ravel()
    if not numbers.size or numbers.min() < 1 or numbers.max() > total or len(np.unique(numbers)) != len(numbers):
        raise DataError(f"{show(root / SPLITS)}: {name} must hold different photo numbers from 1 to {total}")
    return drop_unreadable(Hdf5Split(root / FILE, numbers.astype(np.int64)), on_error)


def fine_table() -> np.ndarray:
    """Look-up table of the 894 ids; 0 is void."""
    table = dict.fromkeys(range(1, LARGEST_ID + 1), len(CLASSES) + 2)
    table |= {fine: label for label, fine in enumerate(CLASSES.values())}
    for label, text in enumerate((STRUCTURE, FURNITURE), len(CLASSES)):
        table |= dict.fromkeys(map(int, text.split()), label)
    return label_table(table | {0: -1})
