"""Potsdam-3: aerial photos of a town in tiles of 200 x 200 pixels, 6 ids merged into 3 classes."""

from pathlib import Path

import numpy as np

from depthg.data.base import Dataset, FileSplit, Split
from depthg.data.files import DataError, label_table, map_ids, show, tree_error
from depthg.data.matlab import read_mat
from depthg.data.pairing import (
    by_stem,
    count_note,
    find_files,
    find_list,
    make_split,
    no_photos,
    pair_listed,
    read_list,
    training_split,
)

CLASSES = {  # in label order: ids, and the colour of the first id in the original label maps
    "roads and cars": ((0, 4), (255, 255, 255)),
    "buildings and clutter": ((1, 5), (0, 0, 255)),
    "vegetation and trees": ((2, 3), (0, 255, 255)),
}
VOID_ID = 255
LISTS = {"train": ("labelled_train.txt", 4545), "val": ("labelled_test.txt", 855)}
UNLABELLED = "unlabelled"  # how the names of lists begin whose tiles need no label map
EXPECTED = """
imgs/*.mat              tiles: uint8 [200, 200, 4] (red, green, blue, infrared) in the variable img
gt/*.mat                label ids 0..5, 255 = void: [200, 200] in the variable gt, under the same names
labelled_train.txt      a tile name per line
labelled_test.txt
unlabelled_train.txt    if you have it, for data.list_train=unlabelled_train.txt: tiles without label map
(the layout of IIC's generator)
"""


class Potsdam3(Dataset):
    """Potsdam-3 below `root`: trains on labelled_train, scores labelled_test, and leaves infrared out.

    Args:
        root: the folder that holds imgs, gt and the lists; never written to.
        on_error: "raise", or "skip" to leave out (and report) tiles that cannot be used.
        train_needed: False: a tree without training photos is opened too; `train` is then empty.
        list_train, list_val: other lists of tiles.

    Raises:
        FileNotFoundError: a folder is missing or empty, or a list is missing.
        DataError: a tile of a list, or its label map, is missing, or a damaged list.
    """

    def __init__(
        self,
        root: str | Path,
        on_error: str = "raise",
        list_train: str | Path | None = None,
        list_val: str | Path | None = None,
        train_needed: bool = True,
    ):
        root = Path(root).expanduser()
        none = no_photos(root, _table()), "train: none"
        train, train_note = training_split(lambda: _split(root, "train", list_train, on_error), none, train_needed)
        val, val_note = _split(root, "val", list_val, on_error)
        super().__init__(
            name="potsdam3",
            classes=tuple(CLASSES),
            palette=np.array([colour for _, colour in CLASSES.values()], np.uint8),
            train=train,
            val=val,
            note=f"{train_note}; {val_note}",
        )


class TileSplit(FileSplit):
    """Tiles and label maps in MATLAB files."""

    def image(self, index: int) -> np.ndarray:  # uint8 [H, W, 3]
        path = self.images[index]
        values = read_mat(path, "img")
        if values.dtype != np.uint8 or values.ndim != 3 or values.shape[2] not in (3, 4):
            raise DataError(
                f"{show(path)}: img is {values.dtype} {values.shape}; expected uint8 [height, width, 3 or 4]"
            )
        return np.ascontiguousarray(values[..., :3])

    def size_and_turn(self, index: int) -> tuple[tuple[int, int], int]:
        return self.image(index).shape[:2], 1

    def read_label(self, path: Path) -> np.ndarray:  # int64 [H, W]
        values = read_mat(path, "gt")
        if values.ndim != 2 or values.dtype.kind not in "iuf" or (values != np.round(values)).any():
            raise DataError(
                f"{show(path)}: gt is {values.dtype} {values.shape}; expected whole numbers [height, width]"
            )
        return map_ids(values.astype(np.int64), self.table, path)


def _split(root: Path, part: str, given: str | Path | None, on_error: str) -> tuple[Split, str]:
    images, labels = (by_stem(find_files(root / folder, root, EXPECTED, (".mat",))) for folder in ("imgs", "gt"))
    usual, count = LISTS[part]
    source = find_list(given, f"data.list_{part}", root, root / usual)
    if source is None:
        raise tree_error(f"no list {root / usual}", root, EXPECTED)
    entries = read_list(source)
    pairs, alone = pair_listed(
        entries,
        images,
        labels,
        source=source,
        photo_path=lambda key: root / "imgs" / f"{key}.mat",
        label_path=lambda key: root / "gt" / f"{key}.mat",
        on_error=on_error,
        labelled=not source.name.startswith(UNLABELLED),
    )
    split = make_split(pairs, alone, root=root, table=_table(), on_error=on_error, kind=TileSplit)
    return split, count_note(part, source.name, len(entries), count, len(split))


def _table() -> np.ndarray:
    ids = {label_id: label for label, (own, _) in enumerate(CLASSES.values()) for label_id in own}
    return label_table(ids | {VOID_ID: -1})
