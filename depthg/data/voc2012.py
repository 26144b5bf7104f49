"""PASCAL VOC 2012: everyday photos, 20 kinds of objects and background."""

from pathlib import Path

import numpy as np

from depthg.data.base import Dataset, Split
from depthg.data.files import label_table, list_files, tree_error
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

CLASSES = {  # in label order, with the colours of the data set
    "background": (0, 0, 0),
    "aeroplane": (128, 0, 0),
    "bicycle": (0, 128, 0),
    "bird": (128, 128, 0),
    "boat": (0, 0, 128),
    "bottle": (128, 0, 128),
    "bus": (0, 128, 128),
    "car": (128, 128, 128),
    "cat": (64, 0, 0),
    "chair": (192, 0, 0),
    "cow": (64, 128, 0),
    "dining table": (192, 128, 0),
    "dog": (64, 0, 128),
    "horse": (192, 0, 128),
    "motorbike": (64, 128, 128),
    "person": (192, 128, 128),
    "potted plant": (0, 64, 0),
    "sheep": (128, 64, 0),
    "sofa": (0, 192, 0),
    "train": (128, 192, 0),
    "tv monitor": (0, 64, 128),
}
VOID_ID = 255
COUNTS = {"train": 1464, "val": 1449}
EXPECTED = """
JPEGImages/*.jpg                          photos
SegmentationClass/*.png                   label ids 0..20, 255 = void, as palette PNG
SegmentationClassAug/*.png                further label maps, if you have them, for data.list_train=trainaug.txt
ImageSets/Segmentation/train.txt          a photo name per line
ImageSets/Segmentation/val.txt
(data.root may also be the folder VOCdevkit around VOC2012)
"""


class Voc2012(Dataset):
    """VOC 2012 below `root`, splits train and val of the segmentation task.

    Args:
        root: the folder VOC2012, or one around it; never written to.
        on_error: "raise", or "skip" to leave out (and report) photos that cannot be used.
        train_needed: False: a tree without training photos is opened too; `train` is then empty.
        list_train, list_val: other lists of photos than those in ImageSets/Segmentation.

    Raises:
        FileNotFoundError: a folder is missing or empty, or a list is missing.
        DataError: a photo of a list, or its label map, is missing, or a damaged list.
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
        inside = [folder for folder in (root / "VOC2012", root / "VOCdevkit/VOC2012") if folder.is_dir()]
        root = inside[0] if inside and not (root / "JPEGImages").is_dir() else root
        none = no_photos(root, _table()), "train: none"
        train, train_note = training_split(lambda: _split(root, "train", list_train, on_error), none, train_needed)
        val, val_note = _split(root, "val", list_val, on_error)
        super().__init__(
            name="voc2012",
            classes=tuple(CLASSES),
            palette=np.array(list(CLASSES.values()), np.uint8),
            train=train,
            val=val,
            note=f"{train_note}; {val_note}",
        )


def _split(root: Path, part: str, given: str | Path | None, on_error: str) -> tuple[Split, str]:
    images = by_stem(find_files(root / "JPEGImages", root, EXPECTED))
    labels = by_stem(find_files(root / "SegmentationClass", root, EXPECTED, (".png",)))
    further = root / "SegmentationClassAug"
    if further.is_dir():
        labels = by_stem(list_files(further, (".png",))) | labels
    usual = root / "ImageSets" / "Segmentation" / f"{part}.txt"
    source = find_list(given, f"data.list_{part}", root, usual)
    if source is None:
        raise tree_error(f"no list {usual}", root, EXPECTED)
    entries = read_list(source)
    pairs, alone = pair_listed(
        entries,
        images,
        labels,
        source=source,
        photo_path=lambda key: root / "JPEGImages" / f"{key}.jpg",
        label_path=lambda key: root / "SegmentationClass" / f"{key}.png",
        on_error=on_error,
    )
    split = make_split(pairs, alone, root=root, table=_table(), on_error=on_error)
    return split, count_note(part, source.name, len(entries), COUNTS[part], len(split))


def _table() -> np.ndarray:
    return label_table({label: label for label in range(len(CLASSES))} | {VOID_ID: -1})
