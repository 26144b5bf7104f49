"""Miniature data sets in the on-disk formats of the real ones: names, folders, suffixes, modes, keys and dtypes.

Photo number n is filled with the value n, except for a ramp in its last rows; label maps go through every id.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def photo(number: int, shape: tuple[int, int]) -> np.ndarray:  # uint8 [H, W, 3]
    image = np.full((*shape, 3), number, np.uint8)
    image[-2:] = np.linspace(0, 255, shape[1]).astype(np.uint8)[:, None]
    return image


def through(ids, number: int, shape: tuple[int, int]) -> np.ndarray:  # [H, W]
    """A label map that cycles through `ids`, which must fit."""
    ids = np.asarray(ids)
    assert len(ids) <= shape[0] * shape[1]
    return ids[(np.arange(shape[0] * shape[1]) + number) % len(ids)].reshape(shape)


CITIES = {"train": {"aachen": 4, "zurich": 2}, "val": {"frankfurt": 3}}
CITY_SHAPE = (20, 40)


def write_cityscapes(root: Path) -> Path:
    for part, cities in CITIES.items():
        for city, count in cities.items():
            photos, labels = root / "leftImg8bit" / part / city, root / "gtFine" / part / city
            photos.mkdir(parents=True)
            labels.mkdir(parents=True)
            for number in range(count):
                name = f"{city}_000000_{number:06}"
                Image.fromarray(photo(number, CITY_SHAPE)).save(photos / f"{name}_leftImg8bit.png")
                ids = through(np.arange(34), number, CITY_SHAPE).astype(np.uint8)
                Image.fromarray(ids).save(labels / f"{name}_gtFine_labelIds.png")
                Image.fromarray(ids.astype(np.uint16) * 1000).save(labels / f"{name}_gtFine_instanceIds.png")
                Image.fromarray(np.dstack([ids] * 4)).save(labels / f"{name}_gtFine_color.png")
                (labels / f"{name}_gtFine_polygons.json").write_text(json.dumps({"objects": []}))
    return root


COCO_SHAPE = (18, 24)
COCO = {"train": [9, 25, 30, 34, 36, 42], "val": [139, 285, 632]}


def write_cocostuff27(root: Path, images: str = ".", labels: str = "annotations", curated: bool = False) -> Path:
    """The two zips of COCO 2017 and the one of stuffthingmaps; with `curated`, the lists without the last photo."""
    for part, numbers in COCO.items():
        photos, maps = root / images / f"{part}2017", root / labels / f"{part}2017"
        photos.mkdir(parents=True)
        maps.mkdir(parents=True)
        for number in numbers:
            Image.fromarray(photo(number % 256, COCO_SHAPE)).save(photos / f"{number:012}.jpg", quality=100)
            ids = through([*range(182), 255], number, COCO_SHAPE).astype(np.uint8)
            Image.fromarray(ids).save(maps / f"{number:012}.png")
        if curated:
            name = "Coco164kFull_Stuff_Coarse" + ("" if part == "train" else "_7") + ".txt"
            folder = root / "curated" / f"{part}2017"
            folder.mkdir(parents=True)
            (folder / name).write_text("".join(f"{number:012}\n" for number in numbers[:-1]))
    return root


TILE = (200, 200)
TILES = {"labelled_train": ["7", "3", "12", "5", "0", "8"], "labelled_test": ["1", "9"], "unlabelled_train": ["2", "4"]}


def write_potsdam3(root: Path) -> Path:
    for folder in ("imgs", "gt"):
        (root / folder).mkdir(parents=True)
    for name, tiles in TILES.items():
        (root / f"{name}.txt").write_text("".join(f"{tile}\n" for tile in tiles))
        for tile in tiles:
            infrared = np.full((*TILE, 1), 255, np.uint8)
            values = np.concatenate([photo(int(tile), TILE), infrared], 2)
            savemat(root / "imgs" / f"{tile}.mat", {"img": values})
            if name != "unlabelled_train":
                ids = through(np.arange(6), int(tile), TILE).astype(np.int32)
                savemat(root / "gt" / f"{tile}.mat", {"gt": ids})
    return root


NYU_SHAPE = (30, 40)
NYU = {"trainNdxs": [2, 3, 5, 6, 8, 9], "testNdxs": [1, 4, 7]}


def write_nyuv2(root: Path) -> Path:
    """HDF5 as MATLAB 7.3 writes it: a user block with MATLAB's text, axes in reverse order, single-precision depth."""
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    height, width = NYU_SHAPE
    images = np.stack([photo(number, NYU_SHAPE) for number in range(1, 10)])
    depths = np.stack([np.linspace(number, number + 4, height * width).reshape(NYU_SHAPE) for number in range(1, 10)])
    labels = np.stack([through(np.arange(895), number, NYU_SHAPE) for number in range(9)])
    path = root / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("images", data=images.transpose(0, 3, 2, 1), compression="gzip")
        file.create_dataset("depths", data=depths.transpose(0, 2, 1).astype(np.float32), compression="gzip")
        file.create_dataset("labels", data=labels.transpose(0, 2, 1).astype(np.uint16), compression="gzip")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    savemat(root / "splits.mat", {key: np.array(numbers, np.uint16)[:, None] for key, numbers in NYU.items()})
    return root


VOC_SHAPE = (20, 26)
VOC = {"train": [f"2007_{n:06}" for n in (32, 39, 63, 68, 121, 170)], "val": ["2007_000033", "2007_000042"]}
VOC_FURTHER = "2008_000008"


def write_voc2012(root: Path) -> Path:
    """Palette PNGs with white borders at 255, a photo without label map, and a list of further label maps."""
    folders = {name: root / name for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug")}
    lists = root / "ImageSets" / "Segmentation"
    for folder in (*folders.values(), lists):
        folder.mkdir(parents=True)
    palette = np.random.default_rng(0).integers(0, 256, 768).tolist()
    for part, names in VOC.items():
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
        for number, name in enumerate(names):
            Image.fromarray(photo(number, VOC_SHAPE)).save(folders["JPEGImages"] / f"{name}.jpg", quality=100)
            ids = Image.fromarray(through([*range(21), 255], number, VOC_SHAPE).astype(np.uint8), mode="L")
            ids.putpalette(palette)
            assert ids.mode == "P"
            ids.save(folders["SegmentationClass"] / f"{name}.png")
    Image.fromarray(photo(9, VOC_SHAPE)).save(folders["JPEGImages"] / f"{VOC_FURTHER}.jpg")
    further = through(range(21), 0, VOC_SHAPE).astype(np.uint8)
    Image.fromarray(further).save(folders["SegmentationClassAug"] / f"{VOC_FURTHER}.png")
    (lists / "trainaug.txt").write_text("".join(f"{name}\n" for name in [*VOC["train"], VOC_FURTHER]))
    return root
