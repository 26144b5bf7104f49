"""One file per data set, all behind the same small interface."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthg.data.base import Dataset, Split, Subset, check_on_error, drop_unreadable
from depthg.data.files import DataError, cache_root
from depthg.data.reading import DEFAULT, Reading

if TYPE_CHECKING:
    from depthg.data.transforms import View, Views, to_float

__all__ = [
    "DataError", "Dataset", "Split", "Subset", "View", "Views", "drop_unreadable", "load_dataset", "to_float",
]  # fmt: skip

COUNTS = ("n_train", "n_val", "n_test", "size")
LISTS = ("list_train", "list_val")
FILES = (*LISTS, "labels", "classes")
FURTHER = ("unlabelled",)


def __getattr__(name: str) -> Any:
    """Imports what needs torch at its first use: processes that render scenes import this package too."""
    if name not in ("View", "Views", "to_float"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("depthg.data.transforms"), name)


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    on_error: str = "raise",
    cache_dir: str | Path | None = None,
    seed: int = 0,
    held_out: bool = True,
    reading: Reading = DEFAULT,
    train_needed: bool = True,
    **given: int | str | Path | None,
) -> Dataset:
    """Open a data set by name.

    Args:
        name: "scenes" (procedural, needs no files), "camvid", "cityscapes", "cocostuff27", "potsdam3", "nyuv2",
            "voc2012", or "folder" (any photos, labels optional).
        root: folder of the data set; scenes needs none.
        on_error: "raise" or "skip" for photos that cannot be used.
        cache_dir: where scenes keeps its rendered photos; the user cache folder when None.
        seed: seed of scenes.
        held_out: False: folder scores all its labelled photos; other data sets have their own splits.
        reading: how folder reads photo files; the other data sets have one kind of photo each.
        train_needed: False: a data set without training photos is opened too, for an evaluation; `train` is then
            empty (camvid, cityscapes, cocostuff27, potsdam3, voc2012).
        given: n_train, n_val, n_test and size (pixels) of scenes, n_val of folder; a data set leaves alone those that
            its files decide. list_train and list_val: text files with a photo per line, for data sets that have
            lists. labels and classes of folder, unlabelled of cityscapes. None stands for not given.

    Raises:
        ValueError: unknown name or policy, a missing `root`, or a file or setting that the data set has no use for.
        TypeError: unknown argument.
        FileNotFoundError: the data set is not at `root`, or a list is missing.
        DataError: photos and labels do not fit together.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"data={name!r} is no known data set ({', '.join(DATASETS)}){hint}")
    check_on_error(on_error)
    _check_reading(name, reading)
    unknown = [key for key in given if key not in (*COUNTS, *FILES, *FURTHER)]
    if unknown:
        known = ", ".join((*COUNTS, *FILES, *FURTHER))
        raise TypeError(f"load_dataset has no argument {unknown[0]!r}; beside the named ones it takes {known}")
    counts: dict[str, Any] = {key: value for key, value in given.items() if key in COUNTS and value is not None}
    paths = (*FILES, *FURTHER)
    files: dict[str, Any] = {key: value for key, value in given.items() if key in paths and value not in (None, "")}
    if name == "scenes":
        _check_files(name, files, ())
        return _scenes(cache_dir, seed, counts)
    module, kind, _, takes = DATASETS[name]
    check_root(name, root)
    _check_files(name, files, takes)
    open_it: Callable[..., Dataset] = getattr(import_module(f"depthg.data.{module}"), kind)
    own: dict[str, Any] = {"train_needed": train_needed} if name not in ("folder", "nyuv2") else {}
    own |= {"n_val": counts.get("n_val"), "held_out": held_out, "reading": reading} if name == "folder" else {}
    return open_it(root, on_error=on_error, **files, **own)


def _scenes(cache_dir: str | Path | None, seed: int, counts: Mapping[str, Any]) -> Any:  # what a Dataset has
    from depthg.data.scenes import SceneDataset

    return SceneDataset(cache_dir=cache_root(cache_dir), seed=seed, **counts)


def check_root(name: str, root: str | Path | None) -> None:
    """Raise ValueError where a data set lies in a folder and none is given."""
    if name != "scenes" and (root is None or not str(root)):
        raise ValueError(f"data={name} needs data.root=DIR: {DATASETS[name][2]}")


def _check_reading(name: str, reading: Reading) -> None:
    for item in fields(Reading):
        if name != "folder" and getattr(reading, item.name) != getattr(DEFAULT, item.name):
            raise ValueError(f"data={name} has no use for data.{item.name} (only folder): leave it out")


def _check_files(name: str, files: Mapping[str, str | Path], takes: tuple[str, ...]) -> None:
    for key in files:
        if key not in takes:
            users = ", ".join(other for other, row in DATASETS.items() if row and key in row[3])
            raise ValueError(f"data={name} has no use for data.{key} (only {users}): leave it out")


# name: module, class, what data.root must be, files that can be given
DATASETS: dict[str, tuple[str, str, str, tuple[str, ...]] | None] = {
    "scenes": None,
    "camvid": ("camvid", "CamVid", "the folder that holds train, trainannot, val and valannot", ()),
    "cityscapes": ("cityscapes", "Cityscapes", "the folder that holds leftImg8bit and gtFine", FURTHER),
    "cocostuff27": ("cocostuff27", "CocoStuff27", "the folder that holds train2017, val2017 and the label maps", LISTS),
    "potsdam3": ("potsdam3", "Potsdam3", "the folder that holds imgs, gt and labelled_train.txt", LISTS),
    "nyuv2": ("nyuv2", "NyuV2", "the folder that holds nyu_depth_v2_labeled.mat and splits.mat", ()),
    "voc2012": ("voc2012", "Voc2012", "the folder VOC2012 that holds JPEGImages and SegmentationClass", LISTS),
    "folder": ("folder", "Folder", "a folder of photos", FILES),
}
