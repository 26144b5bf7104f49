"""COCO-Stuff-27: everyday photos of COCO 2017, 182 ids of things and stuff merged into 27 classes."""

from pathlib import Path
from typing import Any

from depthg.data.base import Dataset, Split
from depthg.data.colours import class_palette
from depthg.data.files import label_table, tree_error
from depthg.data.pairing import (
    by_stem,
    count_note,
    find_files,
    find_list,
    make_split,
    no_photos,
    pair_files,
    pair_listed,
    read_list,
    training_split,
)

CLASSES = {  # in label order, with the ids of stuffthingmaps that each takes
    "electronic": "71-76",
    "appliance": "77-82",
    "food": "51-60",
    "furniture": "61-70",
    "indoor": "83-90",
    "kitchen": "43-50",
    "accessory": "25-32",
    "animal": "15-24",
    "outdoor": "9-14",
    "person": "0",
    "sports": "33-42",
    "vehicle": "1-8",
    "ceiling": "101-102",
    "floor": "100 113-117",
    "food-stuff": "120-121 152 169",
    "furniture-stuff": "97 106-107 109 111 122 129 132 155 160 164",
    "raw-material": "99 131 138 142",
    "textile": "91-92 103-104 108 130 136 140 151 166-167",
    "wall": "170-176",
    "window": "179-180",
    "building": "94-95 127 150 157 165",
    "ground": "110 124-125 135 139 143-144 146 148 153 158",
    "plant": "93 96 118 123 128 133 141 162 168",
    "sky": "105 156",
    "solid": "126 134 149 159 161 181",
    "structural": "98 112 137 145 163",
    "water": "119 147 154 177-178",
}
VOID_ID = 255
LISTS = {  # of the published protocol: photos that are mostly stuff
    "train": ("Coco164kFull_Stuff_Coarse.txt", 97_702),
    "val": ("Coco164kFull_Stuff_Coarse_7.txt", 2_175),
}
IMAGES, LABELS = (".", "images"), ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017")
EXPECTED = f"""
train2017/*.jpg                 photos (or images/train2017)
val2017/*.jpg
annotations/train2017/*.png     label ids 0..181, 255 = void (or in {" or ".join(LABELS[1:])})
annotations/val2017/*.png
curated/train2017/{LISTS["train"][0]}    lists of photos, if you have them
curated/val2017/{LISTS["val"][0]}    (or data.list_train, data.list_val)
"""


class CocoStuff27(Dataset):
    """COCO-Stuff below `root`; without lists all photos of train2017 and val2017 are used, and `note` says so.

    Args:
        root: the folder that holds photos and label maps; never written to.
        on_error: "raise", or "skip" to leave out (and report) photos that cannot be used.
        train_needed: False: a tree without training photos is opened too; `train` is then empty.
        list_train, list_val: text files with an image id per line; those in `root`/curated when None.

    Raises:
        FileNotFoundError: a folder is missing or empty, or a given list is missing.
        DataError: a photo (of the list) without label map, or a damaged list.
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
        none = no_photos(root, coarse_table()), "train: none"
        train, train_note = training_split(lambda: _split(root, "train", list_train, on_error), none, train_needed)
        val, val_note = _split(root, "val", list_val, on_error)
        super().__init__(
            name="cocostuff27",
            classes=tuple(CLASSES),
            palette=class_palette(len(CLASSES)),
            train=train,
            val=val,
            note=f"{train_note}; {val_note}",
        )


def _split(root: Path, part: str, given: str | Path | None, on_error: str) -> tuple[Split, str]:
    year, (usual, count) = f"{part}2017", LISTS[part]
    image_folder, label_folder = (_existing(root, folders, year) for folders in (IMAGES, LABELS))
    images = by_stem(find_files(image_folder, root, EXPECTED))
    maps = find_files(label_folder, root, EXPECTED, (".png",))
    labels = by_stem([path for path in maps if "_" not in path.stem])  # converters leave *_labelTrainIds.png there
    source = find_list(given, f"data.list_{part}", root, root / "curated" / year / usual)
    places: dict[str, Any] = {
        "photo_path": lambda key: image_folder / f"{key}.jpg",
        "label_path": lambda key: label_folder / f"{key}.png",
        "on_error": on_error,
    }
    if source is None:
        pairs, alone = pair_files(images, labels, **places)
    else:
        entries = read_list(source)
        pairs, alone = pair_listed(entries, images, labels, source=source, **places)
    split = make_split(pairs, alone, root=root, table=coarse_table(), on_error=on_error)
    if source is None:
        return split, f"{part}: no list, all {len(split):,} photos of {year} (the usual list has {count:,})"
    return split, count_note(part, source.name, len(entries), count, len(split))


def _existing(root: Path, folders: tuple[str, ...], year: str) -> Path:
    for folder in folders:
        if (root / folder / year).is_dir():
            return root / folder / year
    tried = " nor ".join(str(root / folder / year) for folder in folders)
    raise tree_error(f"no folder {tried}", root, EXPECTED)


def coarse_table():
    """Look-up table of the 182 ids."""
    table = {VOID_ID: -1}
    for label, ranges in enumerate(CLASSES.values()):
        for text in ranges.split():
            first, _, last = text.partition("-")
            table |= dict.fromkeys(range(int(first), int(last or first) + 1), label)
    return label_table(table)
