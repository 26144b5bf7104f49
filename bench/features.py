"""Times the backbone, the rest of the preparation, and reading batches: ``python bench/features.py``.

    python bench/features.py [--device cpu|cuda] [--photos DIR] [--json FILE] [--quick]

1. Images per second of DINO ViT-S/8 (random weights) with fused attention, against the same network with attention
   weights in memory; their features are compared first.
2. Fraction of the preparation's time outside the backbone: the features stage over JPEG photos (decoding, resizing,
   rounding, writing, flushing) against bare forward passes over as many images, in turns.
3. A training batch from the cache: whole maps and single cells, against indexing the memory map and converting.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common
import numpy as np
import torch
from PIL import Image

from depthg.backbones import Backbone, load_backbone
from depthg.config.composing import load_config
from depthg.features.preparation import Preparation
from depthg.features.reading import StoredFeatures

SIDE = 224
BATCH = 4  # images of a timed pass
PHOTO = (480, 640)  # height and width, COCO's
NAME = "dino_vits8"


@dataclasses.dataclass(frozen=True)
class Row:
    part: str
    contender: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    per_second: float
    ratio: float  # median over that of the part's first contender


def rows_of(part: str, timings: dict[str, common.Timing], count: int) -> list[Row]:
    first = next(iter(timings.values())).median
    return [
        Row(part, name, t.median, t.p20, t.p80, count / t.median * 1e3, t.median / first) for name, t in timings.items()
    ]


def random_weights(folder: Path) -> Path:
    """A transformers folder of DINO ViT-S/8 with random weights."""
    from transformers import ViTConfig, ViTModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, patch_size=8,
        image_size=SIDE, layer_norm_eps=1e-6,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder / "vits8")
    return folder / "vits8"


def attention(weights: Path, device: str, quick: bool) -> list[Row]:
    """Times fused attention, and attention with its weights in memory."""
    backbone = load_backbone(NAME, weights, device)
    images = torch.rand(BATCH, 3, SIDE, SIDE, device=device)

    def run(kind: str) -> torch.Tensor:
        backbone.body.model.set_attn_implementation(kind)
        return backbone(images)

    torch.testing.assert_close(run("sdpa"), run("eager"), rtol=1e-3, atol=1e-3)
    calls = {"fused": lambda: run("sdpa"), "materialised": lambda: run("eager")}
    timings = common.time_all(calls, device=device, budget_s=2 if quick else 15, least=2 if quick else 5, most=15)
    return rows_of("attention", timings, BATCH)


def write_photos(folder: Path, count: int) -> Path:
    """Writes JPEGs of smooth colours and some noise, which take about as long to decode as photos of that size."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(PHOTO[::-1], Image.Resampling.BICUBIC), np.float32)
        noisy = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:04d}.jpg", quality=90)
    return folder


@contextmanager
def watched(backbone: Backbone) -> Iterator[list[float]]:
    """Context that records the seconds of every forward pass."""
    seconds: list[float] = []
    original = backbone.forward

    def forward(images: torch.Tensor) -> torch.Tensor:
        begin = time.perf_counter()
        result = original(images)
        common.synchronize(images.device.type)
        seconds.append(time.perf_counter() - begin)
        return result

    backbone.forward = forward
    try:
        yield seconds
    finally:
        del backbone.forward


def preparation(weights: Path, photos: Path, folder: Path, device: str, rounds: int) -> tuple[list[Row], float]:
    """Times the features stage in turns with bare passes; also returns the stage's fraction outside the backbone."""
    backbone = load_backbone(NAME, weights, device)
    bare, stage, inside, count = [], [], [], 0
    for number in range(rounds):
        config = load_config(
            [
                "data=folder", f"data.root={photos}", "n_classes=2", "data.n_val=1", "depth.source=none",
                f"backbone={NAME}", f"backbone.weights={weights}", f"data.size=[{SIDE},{SIDE}]",
                f"cache.dir={folder / str(number)}", "knn.k=1", "knn.draw=1",
            ]
        )  # fmt: skip
        prepared = Preparation(config, torch.device(device))
        prepared._backbone = backbone
        plan, views, writer = prepared.feature_plans[0]
        count, size = len(views), writer.batch
        images = torch.rand(size, 3, SIDE, SIDE, device=device)
        if number == 0:
            backbone(images)
        begin = time.perf_counter()
        for start in range(0, count, size):
            backbone(images[: min(size, count - start)])
        common.synchronize(device)
        bare.append((time.perf_counter() - begin) * 1e3)
        with watched(backbone) as seconds:
            begin = time.perf_counter()
            prepared._write_features(plan, views, writer)
            stage.append((time.perf_counter() - begin) * 1e3)
        inside.append(1 - sum(seconds) * 1e3 / stage[-1])
    timings = {"bare passes": common.summary(bare), "features stage": common.summary(stage)}
    return rows_of(f"preparation of {count} photos", timings, count), sorted(inside)[len(inside) // 2]


def reading(folder: Path, device: str, quick: bool) -> list[Row]:
    """Times reading batches of 32 random views of 28 x 28 cells and 384 channels, from a file in the page cache."""
    views, cells, channels, size, points = 128 if quick else 512, 784, 384, 32, 121
    rng = np.random.default_rng(0)
    path = folder / "features.npy"
    np.save(path, rng.standard_normal((views, cells, channels), np.float32).astype(np.float16))
    array, features = np.load(path, mmap_mode="r"), StoredFeatures(path, torch.float16)
    buffer = torch.empty(size, cells, channels)
    chosen = torch.from_numpy(rng.integers(cells, size=(size, points)))
    index = chosen[:, :, None].expand(-1, -1, channels).to(device)

    def draw() -> np.ndarray:
        return np.sort(rng.permutation(views)[:size])

    def plain(some: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array[some])).to(device).float()

    some = draw()
    assert torch.equal(features.rows(some, device, buffer), plain(some))
    assert torch.equal(features.at(some, chosen, device), plain(some).gather(1, index))
    whole = {"maps": lambda: features.rows(draw(), device, buffer), "maps, indexed": lambda: plain(draw())}
    single = {
        "121 cells": lambda: features.at(draw(), chosen, device),
        "121 cells of indexed maps": lambda: plain(draw()).gather(1, index),
    }
    budget = 0.5 if quick else 3
    found = []
    for name, calls in (("read maps", whole), ("read cells", single)):
        found += rows_of(name, common.time_all(calls, device=device, budget_s=budget), size)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--photos", type=Path, help="a folder of photos to prepare instead of generated ones")
    parser.add_argument("--json", type=Path, help="write the table and the machine to this file")
    parser.add_argument("--quick", action="store_true", help="few photos, few repeats")
    args = parser.parse_args()
    print(common.machine_line(args.device))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = random_weights(folder)
        rows = attention(weights, args.device, args.quick)
        photos = args.photos or write_photos(folder / "photos", 4 if args.quick else 64)
        prepared, outside = preparation(weights, photos, folder, args.device, 1 if args.quick else 3)
        rows += prepared + reading(folder, args.device, args.quick)
    print(common.format_table([f.name for f in dataclasses.fields(Row)], [dataclasses.astuple(row) for row in rows]))
    speed_up, lost = rows[1].ratio, 1 - 1 / prepared[1].ratio
    print(f"fused attention: {speed_up:.2f} x")
    print(f"preparation: {lost:.1%} slower than bare passes, {outside:.1%} of it between passes")
    if args.json:
        derived = {"fused_times": speed_up, "lost_share": lost, "between_passes_share": outside}
        common.write_json(args.json, device=args.device, rows=rows, derived=derived)


if __name__ == "__main__":
    main()
