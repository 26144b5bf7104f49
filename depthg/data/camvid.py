"""CamVid: street photos from a car, 11 classes, in the folder layout of SegNet."""

from pathlib import Path

import numpy as np

from depthg.data.base import Dataset, FileSplit, Split, drop_unreadable, pair_files, report_skipped
from depthg.data.files import label_table, list_files, tree_error

CLASSES = {  # in label order, with the colours of the data set
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
VOID_ID = 11
EXPECTED = """
train/       photos (.png, .jpg, ...)
trainannot/  a PNG of label ids 0..11 (11 = void) per photo, same stem
val/         as train
valannot/    as trainannot
"""


class CamVid(Dataset):
    """CamVid below `root`.

    Args:
        root: the folder that holds train, trainannot, val and valannot; never written to.
        on_error: "raise", or "skip" to leave out (and report) photos that cannot be used.

    Raises:
        FileNotFoundError: a folder is missing or empty.
        DataError: a photo without label map, or the other way round.
    """

    def __init__(self, root: str | Path, on_error: str = "raise"):
        root = Path(root).expanduser()
        super().__init__(
            name="camvid",
            classes=tuple(CLASSES),
            palette=np.array(list(CLASSES.values()), np.uint8),
            train=_split(root, "train", on_error),
            val=_split(root, "val", on_error),
        )


def _split(root: Path, part: str, on_error: str) -> Split:
    files = []
    for folder in (root / part, root / f"{part}annot"):
        files.append(list_files(folder) if folder.is_dir() else [])
        if not files[-1]:
            problem = "no images in" if folder.is_dir() else "no folder"
            raise tree_error(f"camvid: {problem} {folder}", root, EXPECTED)
    pairs, alone = pair_files(
        *files, label_path=lambda path: root / f"{part}annot" / f"{path.stem}.png", on_error=on_error
    )
    if not pairs:
        raise tree_error(f"camvid: no photo of {root / part} has a label map in {root / part}annot", root, EXPECTED)
    if alone:
        report_skipped(alone, len(files[0]))
    split = FileSplit(
        [image for image, _ in pairs],
        root=root,
        names=[image.stem for image, _ in pairs],
        labels=[label for _, label in pairs],
        table=label_table({label: label for label in range(len(CLASSES))} | {VOID_ID: -1}),
        skipped=alone,
    )
    return drop_unreadable(split, on_error)
