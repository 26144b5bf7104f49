"""One file per data set, all behind the same small interface."""

import difflib
from collections.abc import Callable
from pathlib import Path

from depthg.data.base import Dataset, Split, Subset, check_on_error, drop_unreadable
from depthg.data.files import DataError, cache_root
from depthg.data.transforms import View, Views, to_float

__all__ = ["DataError", "Dataset", "Split", "Subset", "View", "Views", "drop_unreadable", "load_dataset", "to_float"]

COUNTS = ("n_train", "n_val", "n_test", "size")


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    on_error: str = "raise",
    cache_dir: str | Path | None = None,
    seed: int = 0,
    **counts: int,
) -> Dataset:
    """Open a data set by name.

    Args:
        name: "scenes" (procedural, needs no files), "camvid", or "folder" (any photos, no labels).
        root: folder of the data set; scenes needs none.
        on_error: "raise" or "skip" for photos that cannot be used.
        cache_dir: where scenes keeps its rendered photos; the user cache folder when None.
        seed: seed of scenes.
        counts: n_train, n_val, n_test and size (pixels) of scenes, n_val of folder; a data set leaves alone those that
            its files decide.

    Raises:
        ValueError: unknown name or policy, or a missing `root`.
        TypeError: unknown count.
        FileNotFoundError: the data set is not at `root`.
        DataError: photos and labels do not fit together.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"data={name!r} is no known data set ({', '.join(DATASETS)}){hint}")
    check_on_error(on_error)
    unknown = [key for key in counts if key not in COUNTS]
    if unknown:
        raise TypeError(f"load_dataset has no argument {unknown[0]!r}; counts are {', '.join(COUNTS)}")
    given = {key: value for key, value in counts.items() if value is not None}
    return DATASETS[name](root=root, on_error=on_error, cache_dir=cache_dir, seed=seed, **given)


def _scenes(*, root, on_error, cache_dir, seed, **counts) -> Dataset:
    from depthg.data.scenes import SceneDataset

    return SceneDataset(cache_dir=cache_root(cache_dir), seed=seed, **counts)


def _camvid(*, root, on_error, cache_dir, seed, **counts) -> Dataset:
    from depthg.data.camvid import CamVid

    return CamVid(_needed(root, "camvid", "the folder that holds train, trainannot, val and valannot"), on_error)


def _folder(*, root, on_error, cache_dir, seed, n_val=60, **counts) -> Dataset:
    from depthg.data.folder import Folder

    return Folder(_needed(root, "folder", "a folder of photos"), n_val, on_error)


def _needed(root: str | Path | None, name: str, what: str) -> str | Path:
    if root is None or not str(root):
        raise ValueError(f"data={name} needs data.root=DIR: {what}")
    return root


DATASETS: dict[str, Callable[..., Dataset]] = {"scenes": _scenes, "camvid": _camvid, "folder": _folder}
