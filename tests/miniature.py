"""A miniature CamVid tree with depth maps, and settings that train on it in about a second."""

import copy
import functools
from pathlib import Path

import hydra
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from depthg.config.composing import check_overrides, load_config, quote_text, to_config, with_preset
from depthg.config.schema import GROUPS, Config
from depthg.model.checkpoints import read_checkpoint


def write_camvid(root: Path, n_train: int = 6, n_val: int = 3, size: int = 64) -> Path:
    """Photos of a bright sky over a dark, noisy road with a block in between; labels 0, 3, 1 and a void border."""
    rng = np.random.default_rng(0)
    for part, count in (("train", n_train), ("val", n_val)):
        (root / part).mkdir(parents=True)
        (root / f"{part}annot").mkdir()
        (root / "depth" / part).mkdir(parents=True)
        for number in range(count):
            horizon, left = rng.integers(size // 4, size // 2), rng.integers(0, size // 2)
            label = np.zeros((size, size), np.uint8)
            label[horizon:] = 3
            label[horizon - 8 : horizon + 16, left : left + size // 3] = 1
            label[:2] = 11
            colours = np.zeros((12, 3))
            colours[[0, 1, 3, 11]] = [(180, 200, 240), (150, 90, 60), (70, 70, 75), (180, 200, 240)]
            image = colours[label] + rng.normal(0, 12, (size, size, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / part / f"{number:03d}.png")
            Image.fromarray(label).save(root / f"{part}annot" / f"{number:03d}.png")
            depth = np.full((size, size), np.inf, np.float32)
            depth[horizon:] = (60 / (np.arange(size - horizon) + 1))[:, None]
            depth[label == 1] = 8
            np.save(root / "depth" / part / f"{number:03d}.npy", depth)
    return root


def arguments(root: Path, *overrides: str) -> list[str]:
    """Command line for the tree: 64 x 64 pixels, 8 x 8 cells, 16 points, 6 images a step."""
    return [
        "data=camvid", f"data.root={root}", "data.size=[64,64]", "data.eval_size=[64,64]",
        "depth.source=folder", f"depth.root={root / 'depth'}", f"cache.dir={root.parent / 'cache'}",
        f"runs_dir={root.parent / 'runs'}", "backbone.pca=16", "batch_size=6", "iterations=20", "sampling.points=4",
        "head.dim=8", "probe.reinit=10", "val.kmeans_samples=200", "loss.depth.weight=0.2",
        "loss.depth.relation=product", "loss.depth.shift_mean=false", "loss.shifts=fixed", "sampling.start=first",
        *overrides,
    ]  # fmt: skip


@functools.cache
def composed(presets: tuple[str, ...]) -> DictConfig:
    """What Hydra makes of presets alone, once per test run: it takes a tenth of a second."""
    ConfigStore.instance().store(name="schema", node=Config)
    with hydra.initialize_config_module("depthg.config.conf", version_base="1.3"):
        return hydra.compose("config", overrides=list(presets))


def settings(root: Path, *overrides: str) -> Config:
    """The settings of :func:`arguments`, which ``load_config`` gives too; it also tells what is wrong with them."""
    given = with_preset(arguments(root, *overrides))
    check_overrides(given)
    presets = tuple(override for override in given if override.partition("=")[0] in GROUPS)
    try:
        node = copy.deepcopy(composed(presets))
        for override in OverridesParser.create().parse_overrides(quote_text([x for x in given if x not in presets])):
            OmegaConf.update(node, override.key_or_group, override.value(), merge=True)
        return to_config(node)
    except Exception:
        return load_config(given)


def weights(run: Path) -> dict[str, Tensor]:
    """The tensors of a run's last checkpoint."""
    return read_checkpoint(run / "checkpoints" / "last")[0]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
