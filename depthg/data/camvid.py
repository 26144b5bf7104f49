"""CamVid: street photos from a car, 11 classes, in the folder layout of SegNet."""

from pathlib import Path

import numpy as np

from depthg.data.base import Dataset, Split
from depthg.data.files import label_table, tree_error
from depthg.data.pairing import by_stem, find_files, make_split, no_photos, pair_files, training_split

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
TABLE = label_table({label: label for label in range(len(CLASSES))} | {VOID_ID: -1})
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
        train_needed: False: a tree without training photos is opened too; `train` is then empty.

    Raises:
        FileNotFoundError: a folder is missing or empty.
        DataError: a photo without label map, or the other way round.
    """

    def __init__(self, root: str | Path, on_error: str = "raise", train_needed: bool = True):
        root, none = Path(root).expanduser(), no_photos(Path(root).expanduser(), TABLE)
        super().__init__(
            name="camvid",
            classes=tuple(CLASSES),
            palette=np.array(list(CLASSES.values()), np.uint8),
            train=training_split(lambda: _split(root, "train", on_error), none, train_needed),
            val=_split(root, "val", on_error),
        )


def _split(root: Path, part: str, on_error: str) -> Split:
    images, labels = (by_stem(find_files(folder, root, EXPECTED)) for folder in (root / part, root / f"{part}annot"))
    pairs, alone = pair_files(
        images,
        labels,
        photo_path=lambda key: root / part / f"{key}.*",
        label_path=lambda key: root / f"{part}annot" / f"{key}.png",
        on_error=on_error,
    )
    if not pairs:
        raise tree_error(f"no photo of {root / part} has a label map in {root / part}annot", root, EXPECTED)
    return make_split(pairs, alone, root=root, table=TABLE, on_error=on_error)
