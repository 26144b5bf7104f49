"""Cityscapes: street photos from a car in 50 cities, 27 classes (fine label ids 7 to 33)."""

import math
import os
from pathlib import Path

import numpy as np

from depthg.data.base import Dataset, Split
from depthg.data.files import label_table
from depthg.data.pairing import by_stem, count_note, find_files, make_split, no_photos, pair_files, training_split

CLASSES = {  # ids 7 to 33 in order, with the colours of the data set
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "parking": (250, 170, 160),
    "rail track": (230, 150, 140),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "guard rail": (180, 165, 180),
    "bridge": (150, 100, 100),
    "tunnel": (150, 120, 90),
    "pole": (153, 153, 153),
    "polegroup": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "caravan": (0, 0, 90),
    "trailer": (0, 0, 110),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
FIRST = 7
TABLE = {label_id: max(label_id - FIRST, -1) for label_id in range(FIRST + len(CLASSES))} | {
    255: -1
}  # 255: -1 in 8 bits
COUNTS = {"train": 2975, "val": 500}
FOV_DEG = 2 * math.degrees(math.atan(1024 / 2262.5))  # focal length in pixels at 2048 pixels, as calibrated
PHOTO, LABEL = "_leftImg8bit", "_gtFine_labelIds"
EXPECTED = """
leftImg8bit/train/CITY/*_leftImg8bit.png    photos
leftImg8bit/val/CITY/*_leftImg8bit.png
gtFine/train/CITY/*_gtFine_labelIds.png     label ids 0..33 under the same names
gtFine/val/CITY/*_gtFine_labelIds.png
"""


class Cityscapes(Dataset):
    """Cityscapes below `root`, splits train and val; the labels of its test split are not public.

    Args:
        root: the folder that holds leftImg8bit and gtFine; never written to.
        on_error: "raise", or "skip" to leave out (and report) photos that cannot be used.
        unlabelled: folder of further photos for training, in `root` or anywhere, laid out as leftImg8bit; those without
            a label map train as void. leftImg8bit_sequence holds 30 frames around each labelled photo.
        train_needed: False: a tree without training photos is opened too; `train` is then empty.

    Raises:
        FileNotFoundError: a folder is missing or empty.
        DataError: a photo without label map, or the other way round.
    """

    def __init__(
        self,
        root: str | Path,
        on_error: str = "raise",
        unlabelled: str | Path | None = None,
        train_needed: bool = True,
    ):
        root = Path(root).expanduser()
        further = None if unlabelled is None else root / Path(unlabelled).expanduser()
        none = no_photos(root, label_table(TABLE)), "train: none"
        train, train_note = training_split(lambda: _split(root, "train", on_error, further), none, train_needed)
        val, val_note = _split(root, "val", on_error)
        super().__init__(
            name="cityscapes",
            classes=tuple(CLASSES),
            palette=np.array(list(CLASSES.values()), np.uint8),
            train=train,
            val=val,
            note=f"{train_note}; {val_note}",
        )


def _split(root: Path, part: str, on_error: str, further: Path | None = None) -> tuple[Split, str]:
    folders = root / "leftImg8bit" / part, root / "gtFine" / part
    endings = f"{PHOTO}.png", f"{LABEL}.png"

    def frames(folder: Path, ending: str) -> dict[str, Path]:
        files = find_files(folder, root, EXPECTED, (ending.lower(),), recursive=True)
        return by_stem(files, lambda path: f"{path.parent.name}/{path.name[: -len(ending)]}")

    images, labels = (frames(folder, ending) for folder, ending in zip(folders, endings, strict=True))
    added = {} if further is None else frames(further / part, endings[0])
    images |= {key: path for key, path in added.items() if key not in images}
    with_labels = {key: path for key, path in images.items() if further is None or key in labels}
    pairs, alone = pair_files(
        with_labels,
        labels,
        photo_path=lambda key: folders[0] / (key + endings[0]),
        label_path=lambda key: folders[1] / (key + endings[1]),
        on_error=on_error,
    )
    pairs += [(path, None) for key, path in images.items() if key not in with_labels]
    split = make_split(
        pairs,
        alone,
        root=root if further is None else Path(os.path.commonpath([root, further])),
        table=label_table(TABLE),
        on_error=on_error,
        name=lambda path: path.stem[: -len(PHOTO)],
        fov=FOV_DEG,
    )
    if further is None:
        return split, count_note(part, "leftImg8bit", len(split), COUNTS[part])
    return split, f"{part}: leftImg8bit and {further.name}, {len(split):,} photos, {len(with_labels):,} with labels"
