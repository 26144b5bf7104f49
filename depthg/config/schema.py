"""The configuration: one documented dataclass per part. Presets and groups are in ``conf/``.

Units: time in iterations, angles in degrees, depth in [0, 1] or, where stated, in metres.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from depthg.data.reading import check_bands, check_range
from depthg.kernels.reference import RELATIONS


def option(
    default: Any, text: str, *, choices: tuple | None = None, low: float | None = None, high: float | None = None
) -> Any:
    """A dataclass field with a help text; :func:`validate` checks ``choices`` and the inclusive bounds."""
    metadata = {"help": text, "choices": choices, "low": low, "high": high}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataConfig:
    name: str = option(
        "scenes", "data set",
        choices=("scenes", "camvid", "cityscapes", "cocostuff27", "potsdam3", "nyuv2", "voc2012", "folder"),
    )  # fmt: skip
    root: str | None = option(None, "folder of the data set (scenes needs none)")
    list_train: str | None = option(
        None, "cocostuff27, potsdam3, voc2012, folder: text file with a photo per line (default: the usual list)"
    )
    list_val: str | None = option(None, "the same for the validation photos")
    labels: str | None = option(None, "folder: label maps of ids or colours (PNG) under the photos' names")
    classes: str | None = option(None, "folder with labels: text file, '[id] name [#rrggbb]' per line, or labelmap.txt")
    class_map: str | None = option(
        None, "evaluate only: text file 'class of the run -> class of the labels' per line, for labels of other classes"
    )
    unlabelled: str | None = option(
        None, "cityscapes: folder of further photos that train without labels, e.g. leftImg8bit_sequence"
    )
    on_error: str = option("raise", "unreadable photo: stop, or skip, count and report it", choices=("raise", "skip"))
    workers: int = option(
        0, "processes that decode photos for training and its preparation (0: threads of this one)", low=0, high=256
    )
    max_pixels: int = option(
        120_000_000,
        "folder, and predictions: larger photos are refused (decoding takes up to 6 bytes per pixel)",
        low=1,
    )
    range: str = option(
        "auto",
        "folder: values of files of more than 8 bits that become 0 and 255: auto (from a sample of the photos, stored "
        "with the run), type (0..65535; floats 0..1 or 0..255) or LOW,HIGH",
    )
    bands: list[int] = option(
        [], "folder: bands that are shown as red, green and blue, or one as grey, e.g. 3,2,1; empty: the first three"
    )
    map_order: str = option(
        "auto",
        "folder: label and depth maps of photos that EXIF turns lie upright, as the photos are shown, or as stored "
        "(auto: told by the size, else upright with a warning)",
        choices=("auto", "upright", "stored"),
    )
    size: list[int] = option([224, 224], "training height and width; photos are scaled to cover it and cropped")
    eval_size: list[int] = option([224, 224], "evaluation height and width in pixels")
    crop: str = option("none", "train on whole photos or on five half-size crops each", choices=("none", "five"))
    crop_ratio: float = option(0.5, "side of a five-crop relative to the photo", low=0.1, high=1)
    interpolation: str = option(
        "antialias",
        "antialias: bilinear images, nearest labels, area depth; nearest: all, depth then averaged over each cell",
        choices=("antialias", "nearest"),
    )
    n_train: int = option(300, "scenes only: training images", low=1)
    n_val: int | None = option(
        None, "validation images (scenes), or maximum number of photos shown and scored (folder); default: 60", low=1
    )
    held_out: bool = option(
        True, "folder with labels: score photos that training does not see; false: score all (evaluate only)"
    )
    n_test: int = option(60, "scenes only: held-out images", low=1)
    scene_seed: int = option(0, "scenes only: seed of the renderer", low=0)
    eval_split: str = option("val", "split scored at the end and by val.every", choices=("val", "test"))


@dataclass
class BackboneConfig:
    name: str = option("efficientnet_lite0", "frozen network")
    weights: str | None = option(None, "local weights, no download: a transformers folder or a .pth state dict")
    standardize: bool = option(False, "standardise each channel over the training set, then L2-normalise each stage")
    pca: int = option(0, "project features to this many dimensions (0: keep all)", low=0)
    batch_size: int = option(16, "photos per forward pass", low=1)


@dataclass
class FeaturesConfig:
    cache: str = option(
        "on", "keep features on disk, or off: run the backbone in every step, for data too large for the disk",
        choices=("on", "off"),
    )  # fmt: skip
    dtype: str = option("float16", "precision of stored features", choices=("float16", "bfloat16"))


@dataclass
class DepthConfig:
    source: str = option(
        "none", "where depth comes from", choices=("dataset", "folder", "model", "ground_plane", "none")
    )
    root: str | None = option(None, "depth.source=folder: folder of depth maps named like the photos")
    model: str = option(
        "Intel/zoedepth-nyu-kitti", "model: transformers folder or hub id of a ZoeDepth, Depth Anything or DPT network"
    )
    output: str = option(
        "auto",
        "model: the network gives metres, or inverse relative depth (scaled to [0, 1] per photo; auto: by its kind)",
        choices=("auto", "metres", "inverse"),
    )
    flip: bool = option(False, "model: average with the prediction of the mirrored photo")
    on: str = option(
        "photo", "model: predict on the whole photo or on each crop (data.crop)", choices=("photo", "crop")
    )
    batch_size: int = option(4, "model: photos per forward pass", low=1)
    mapping: str = option(
        "saturating",
        "depth to [0, 1]: z/(z+scale), log or linear (metres), minmax (linear per photo, 8 bit, as the released code "
        "does; any unit), or none (already in [0, 1])",
        choices=("saturating", "log", "linear", "minmax", "none"),
    )  # fmt: skip
    scale: float = option(5.0, "depth in metres that the saturating mapping sends to 0.5", low=1e-6)
    far: float = option(80.0, "depth in metres that the log and linear mappings send to 1", low=1e-6)
    truncate: str = option(
        "none",
        "truncate mapped depth to integers (0 below 1), as the released code does: never, on Potsdam-3, or always",
        choices=("none", "potsdam3", "all"),
    )
    metres_per_unit: float | None = option(None, "folder: metres per step of integer maps, 0.001 for millimetres")
    camera_height: float = option(1.4, "ground_plane: camera height in metres", low=1e-6)
    horizon: float = option(0.45, "ground_plane: row of the horizon as a fraction of the image height", low=0, high=1)
    fov_deg: float = option(60.0, "horizontal field of view where the data set does not state one", low=1, high=179)


@dataclass
class SamplingConfig:
    method: str = option("fps", "how points are chosen", choices=("fps", "random"))
    points: int = option(11, "points per side N; N * N points are compared per image", low=1)
    schedule: list[list[int]] = option([], "changes of points per side, [[iteration, points], ...]; empty: constant")
    start: str = option("first", "fps starts at cell 0 or at a random cell", choices=("first", "random"))
    fov_deg: float = option(90.0, "fps: field of view of the unprojection", low=1, high=179)
    unprojection: str = option(
        "pinhole",
        "fps: point cloud of a pinhole camera, or of the released code (degrees taken as radians, z times 5)",
        choices=("pinhole", "released"),
    )
    read: str = option(
        "cells",
        "cells: features of the chosen cells; bilinear: at coordinates in [-1, 1], as STEGO",
        choices=("cells", "bilinear"),
    )
    transpose: bool = option(False, "fps with read=bilinear: swap rows and columns, as the released code does")
    negatives: str = option(
        "own", "negatives are read at their own or at the neighbour's points", choices=("own", "neighbour")
    )


@dataclass
class TermConfig:
    weight: float = option(0.0, "weight lambda")
    shift: float = option(0.0, "shift b")


@dataclass
class NegativeConfig(TermConfig):
    draws: int = option(5, "random pairings per step", low=1)
    pairing: str = option(
        "derangement", "no image is its own negative, or permutations as released", choices=("derangement", "released")
    )


@dataclass
class DepthTermConfig(TermConfig):
    shift_mean: bool = option(False, "use the batch mean of D as shift instead of depth.shift")
    relation: str = option(
        "product", "depth correlation D; unit: 1 wherever both have depth", choices=(*RELATIONS, "inclination")
    )
    bandwidth: float = option(0.1, "gaussian and euclidean: bandwidth in units of [0, 1] depth", low=1e-6)
    at: str = option(
        "points",
        "depth read at the sampled points, or on a regular grid that has nothing to do with them",
        choices=("points", "grid"),
    )
    pair: str = option("self", "compare a crop with itself or with another crop of its photo", choices=("self", "crop"))
    factor: float = option(
        1.0, "weight and shift are multiplied by this every loss.depth.every iterations (1: constant)", low=0, high=1
    )
    every: int = option(0, "iterations between two multiplications by loss.depth.factor (0: never)", low=0)
    decay: str = option(
        "before",
        "multiply before the step of an iteration that loss.depth.every divides, or after it (the released code)",
        choices=("before", "after"),
    )
    weight_minimum: float = option(0.0, "the weight never decays below this", low=0)
    shift_minimum: float = option(0.0, "the shift never decays below this", low=0)


@dataclass
class LossConfig:
    self: TermConfig = field(default_factory=lambda: TermConfig(0.67, 0.08))
    neighbour: TermConfig = field(default_factory=lambda: TermConfig(0.25, 0.02))
    negative: NegativeConfig = field(default_factory=lambda: NegativeConfig(0.63, 0.66))
    depth: DepthTermConfig = field(default_factory=DepthTermConfig)
    shifts: str = option("fixed", "fixed, or auto: quantiles of F before training", choices=("fixed", "auto"))
    quantiles: list[float] = option([0.6, 0.6, 0.9], "shifts=auto: quantiles for self, neighbour and negative pairs")
    center: bool = option(True, "spatial centring of F")
    clamp: bool = option(True, "zero clamp of S")
    scope: str = option(
        "global",
        "several processes: mean of F and negatives over the whole batch, or over each process's part",
        choices=("global", "process"),
    )
    feature_dropout: bool = option(True, "compute F on features after channel dropout (rate head.dropout)")


@dataclass
class HeadConfig:
    dim: int = option(70, "code channels", low=1)
    dropout: float = option(0.1, "fraction of channels dropped", low=0, high=0.99)
    lr: float = option(5e-4, "learning rate (Adam)", low=0)


@dataclass
class ProbeConfig:
    lr: float = option(5e-3, "learning rate of both probes (Adam)", low=0)
    reinit: float = option(
        0,
        "extension: k-means restart of the cluster probe at this share of iterations, or at this iteration (0: never)",
        low=0,
    )
    cells: int = option(
        0, "random cells per image and step that both probes train on (0: all cells, and all pixels)", low=0
    )


@dataclass
class TrainConfig:
    on_nan: str = option(
        "stop",
        "NaN or infinite loss or gradient: stop and keep the step, or skip such iterations and list them",
        choices=("stop", "skip"),
    )


@dataclass
class KnnConfig:
    k: int = option(30, "neighbours stored per image", low=1)
    draw: int = option(7, "the pair is drawn from this many nearest neighbours", low=1)
    exclude_same_photo: bool = option(True, "never pair crops of one photo")
    dropout: bool = option(False, "channel dropout before averaging, as the released code does")
    dtype: str = option(
        "float32", "mean features are rounded to this for the comparison", choices=("float32", "float16", "bfloat16")
    )


@dataclass
class ValConfig:
    every: int = option(0, "iterations between two evaluations (0: only at the end)", low=0)
    matching: str = option(
        "hungarian",
        "clusters to classes: one to one, or many_to_one (each takes its most frequent class)",
        choices=("hungarian", "many_to_one"),
    )
    count: str = option(
        "all",
        "all: every labelled pixel; released: drop pixels of clusters beyond the class number, absent classes count 0",
        choices=("all", "released"),
    )
    crf_image: str = option(
        "photo",
        "bytes that the CRF compares: the photo's; released: normalised and back, truncated, up to 1 lower",
        choices=("photo", "released"),
    )
    panels: int = option(8, "pictures written at the end", low=0)
    kmeans_samples: int = option(40_000, "feature vectors used by the k-means baselines", low=100)


@dataclass
class CheckpointConfig:
    every: int = option(100, "iterations between two checkpoints (0: only at the end)", low=0)
    rule: str = option(
        "last",
        "weights reported: last, or best by a validation score of the clusters (uses labels; needs val.every); both: "
        "keeps the best, reports the last",
        choices=("last", "best", "both"),
    )
    by: str = option("miou", "score that picks the best checkpoint", choices=("miou", "accuracy"))


@dataclass
class CacheConfig:
    dir: str | None = option(None, "where scenes and features are kept; default $DEPTHG_CACHE or the user cache folder")
    shard_mb: float = option(
        64.0, "MiB per cache shard; an interrupted preparation repeats at most one shard", low=0.001
    )


@dataclass
class Config:
    """All settings of a run; ``python -m depthg.train --help`` shows every key with its meaning."""

    experiment: str = option("demo", "preset, see depthg/config/conf/experiment (data=folder alone: photos)")
    mode: str = option(
        "paper", "paper, or released: as the authors' code, wherever it differs", choices=("paper", "released")
    )
    name: str | None = option(
        None, "run folder below runs_dir; default: the experiment, data (photos: their folder) and seed"
    )
    runs_dir: str = option("runs", "where run folders are made")
    overwrite: bool = option(False, "replace an existing run folder")
    resume: str | None = option(None, "continue the run in this folder with its own settings")
    seed: int = option(0, "seed of all random numbers", low=0)
    iterations: int = option(500, "optimiser steps", low=0)
    batch_size: int = option(16, "images per step", low=2)
    last_batch: str = option(
        "drop",
        "the last, smaller batch of an epoch: drop it, or keep it, as the released code does (one process)",
        choices=("drop", "keep"),
    )
    log_every: int = option(10, "iterations between two lines of metrics.jsonl", low=1)
    n_classes: int | None = option(
        None, "number of clusters; default: that of the data set's classes, 8 without labels", low=2, high=1000
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    precision: str = option(
        "auto",
        "precision of the head and the loss inputs; auto: that of accelerate launch --mixed_precision, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    val: ValConfig = field(default_factory=ValConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)


GROUPS = ("experiment", "mode", "data", "backbone", "sampling")
UNLABELLED_CLUSTERS = 8
PLACES = (  # settings that change no number
    "name", "runs_dir", "overwrite", "resume", "device", "data.workers", "data.max_pixels", "cache.dir",
    "cache.shard_mb",
)  # fmt: skip


def options(node: Any = Config, prefix: str = "") -> dict[str, Any]:
    """Maps every leaf key, e.g. ``loss.depth.weight``, to its dataclass field and its value."""
    found: dict[str, Any] = {}
    instance = node() if isinstance(node, type) else node
    for item in fields(instance):
        value, key = getattr(instance, item.name), prefix + item.name
        found.update(options(value, key + ".") if is_dataclass(value) else {key: (item, value)})
    return found


def flatten(values: Mapping, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``; an empty mapping stays as it is."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return found


def differing(first: Mapping, second: Mapping) -> dict[str, tuple]:
    """Settings that differ between two nested mappings: ``key -> (first, second)``, None for an absent key.

    ``PLACES`` are left out.
    """
    a, b = flatten(first), flatten(second)
    return {key: (a.get(key), b.get(key)) for key in a | b if key not in PLACES and a.get(key) != b.get(key)}


def nearest(word: str, valid: Any) -> str:
    """Returns ``; did you mean 'x'?``, or an empty string if no valid word is close."""
    match = difflib.get_close_matches(word, [str(v) for v in valid], n=1, cutoff=0.4)
    return f"; did you mean {match[0]!r}?" if match else ""


def validate(config: Config) -> Config:
    """Checks all values and returns the config; sets ``n_classes`` for a folder without labels.

    Raises:
        ValueError: an invalid value or combination of values; names the key, the value and the valid ones.
    """
    for key, (item, value) in options(config).items():
        choices, low, high = (item.metadata.get(name) for name in ("choices", "low", "high"))
        if choices and value not in choices:
            listed = ", ".join(choices)
            raise ValueError(f"{key}={value!r} is not possible; choose one of {listed}{nearest(str(value), choices)}")
        if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise ValueError(f"{key}={value} is out of range; it must be {bounds}")
    _validate_pairs(config)
    if config.data.name == "folder" and not config.data.labels and config.n_classes is None:
        return replace(config, n_classes=UNLABELLED_CLUSTERS)
    return config


def _validate_pairs(config: Config) -> None:
    for key, length in (("data.size", 2), ("data.eval_size", 2), ("loss.quantiles", 3)):
        part, name = key.split(".")
        value = getattr(getattr(config, part), name)
        if len(value) != length or min(value) <= 0:
            raise ValueError(f"{key}={list(value)} needs {length} positive numbers")
    if max(config.loss.quantiles) >= 1:
        raise ValueError(f"loss.quantiles={list(config.loss.quantiles)} must lie between 0 and 1")
    check_range(config.data.range)
    check_bands(config.data.bands)
    sampling, depth = config.sampling, config.loss.depth
    if sampling.transpose and sampling.read == "cells":
        raise ValueError("sampling.transpose=true needs sampling.read=bilinear: integer cells are read exactly")
    if depth.pair == "crop" and config.data.crop != "five":
        raise ValueError("loss.depth.pair=crop needs data.crop=five: there is no other crop of the same photo")
    if depth.pair == "crop" and depth.at == "grid":
        raise ValueError("loss.depth.pair=crop needs loss.depth.at=points")
    if config.probe.reinit > 1 and config.probe.reinit % 1:
        raise ValueError(f"probe.reinit={config.probe.reinit} must be below 1 (a share) or a whole iteration")
    rule = config.checkpoint.rule
    if rule != "last" and not config.val.every:
        raise ValueError(f"checkpoint.rule={rule} needs val.every: the best checkpoint is picked among evaluations")
    if any(len(change) != 2 or change[0] < 0 or change[1] < 1 for change in sampling.schedule):
        raise ValueError(f"sampling.schedule={sampling.schedule} must be a list of [iteration, points per side]")
    if rule != "last" and config.data.eval_split == "test":
        raise ValueError(f"checkpoint.rule={rule} would pick the checkpoint on data.eval_split=test; use val")
    if (config.data.labels is None) != (config.data.classes is None):
        raise ValueError("data.labels=DIR and data.classes=FILE go together: label maps of ids, and the ids' names")
    if config.depth.source == "folder" and not config.depth.root:
        raise ValueError("depth.source=folder needs depth.root=DIR")
    if config.depth.on == "crop" and (config.depth.source != "model" or config.data.crop == "none"):
        raise ValueError("depth.on=crop needs depth.source=model and data.crop=five: it predicts depth on each crop")
    if depth.relation in ("normals", "inclination") and depth.weight and config.depth.source != "none":
        key = f"loss.depth.relation={depth.relation}"
        if config.depth.mapping == "none":
            raise ValueError(f"{key} needs metric depth, but depth.mapping=none says that it is not in metres")
        if config.depth.on == "crop":
            raise ValueError(f"{key} needs depth.on=photo: a crop does not say where the camera pointed")
    if config.knn.draw > config.knn.k:
        raise ValueError(f"knn.draw={config.knn.draw} exceeds knn.k={config.knn.k}")
    if depth.relation in ("normals", "inclination", "euclidean") and depth.at == "grid":
        raise ValueError(f"loss.depth.relation={depth.relation} needs loss.depth.at=points")
