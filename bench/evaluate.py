"""Times the evaluation pass against its plain definition: ``python bench/evaluate.py [--json FILE]``.

Both read the same frames (rendered scenes), run the same backbone and head, and count both probes. The definition
("written down") up-samples codes to the size of the label, computes cosine and linear scores at every pixel, takes the
arg-max over channels and counts a confusion matrix per image. `floor` is backbone and head alone, without decoding;
`read-outs` excludes them on both sides. Counts are compared before anything is timed: pixels may differ where two
classes tie in the last bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import common
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from depthg.backbones import load_backbone
from depthg.config.composing import load_config
from depthg.data.scenes import SceneDataset
from depthg.data.transforms import to_float
from depthg.evaluation.frames import FULL
from depthg.evaluation.metrics import confusion_matrix, image_confusions
from depthg.evaluation.one_pass import PLAIN, EvaluationPass, probe_read_outs
from depthg.features.transform import FeatureTransform
from depthg.inference.read_outs import predict_ids
from depthg.model.heads import ClusterProbe, LinearProbe, SegmentationHead
from depthg.model.loaded_run import LoadedRun

DIM = 70
CASES = ((8, (224, 224), 16), (27, (320, 320), 16), (27, (1024, 2048), 1))  # classes, size, images
MOST_DIFFERENT = 1e-4  # maximum fraction of differing pixels


@dataclasses.dataclass(frozen=True)
class Row:
    """Milliseconds per image."""

    case: str
    implementation: str
    median: float
    p20: float
    p80: float
    runs: int
    images_per_s: float
    speedup: float
    times_floor: float | None
    peak_mb: float | None  # above the memory in use before; read-outs only


class Memory:
    """A split of rendered scenes in memory, scaled to one size, so that decoding is not timed."""

    def __init__(self, count: int, size: tuple[int, int], classes: int):
        rng = np.random.default_rng(0)
        self.names = [str(number) for number in range(count)]
        with tempfile.TemporaryDirectory() as cache:
            scenes = SceneDataset(cache, n_train=1, n_val=count, progress=False).val
            pictures = [Image.fromarray(scenes.image(number)) for number in range(count)]
        self.photos = np.stack([np.asarray(picture.resize(size[::-1])) for picture in pictures])
        self.labels = rng.integers(-1, classes, (count, *size))

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:
        return self.photos[index]

    def label(self, index: int) -> np.ndarray:
        return self.labels[index]


def make_run(classes: int) -> LoadedRun:
    """A run with the sizes of the demo and random head and probes."""
    torch.manual_seed(0)
    config = load_config([])
    backbone = load_backbone("efficientnet_lite0")
    transform = FeatureTransform(backbone.stages, config.backbone.pca, config.backbone.standardize)
    transform.basis.normal_()
    parts = SegmentationHead(transform.channels, DIM), ClusterProbe(DIM, classes), LinearProbe(DIM, classes)
    for part in parts:
        part.eval().requires_grad_(False)
    names = tuple(f"class {number}" for number in range(classes))
    run = LoadedRun(Path("none"), config, "last", {}, names, torch.device("cpu"), transform, *parts)
    run.__dict__["backbone"] = backbone
    return run


def written_down(run: LoadedRun, codes: torch.Tensor, grid: tuple[int, int], labels: torch.Tensor) -> dict:
    """Confusion matrices of both probes, every step at label size."""
    maps = codes.transpose(1, 2).unflatten(2, grid)
    maps = F.interpolate(maps, labels.shape[1:], mode="bilinear", align_corners=False)
    centroids = F.normalize(run.cluster.centroids, dim=1)
    cosine = torch.einsum("nk,bkhw->bnhw", centroids, F.normalize(maps, dim=1))
    linear = F.conv2d(maps, run.linear.weight[:, :, None, None], run.linear.bias)
    n = len(run.classes)
    return {
        name: np.stack([confusion_matrix(p, c, n, n) for p, c in zip(scores.argmax(1), labels, strict=True)])
        for name, scores in (("cluster", cosine), ("linear", linear))
    }


def ours(run: LoadedRun, codes: torch.Tensor, grid: tuple[int, int], labels: torch.Tensor) -> dict:
    n = len(run.classes)
    return {
        name: image_confusions(predict_ids(read(codes), grid, labels.shape[1:]), labels, n, n)
        for name, read in probe_read_outs(run).items()
    }


def measure(classes: int, size: tuple[int, int], count: int, budget_s: float) -> list[Row]:
    run, split = make_run(classes), Memory(count, size, classes)
    labels, grid = torch.from_numpy(split.labels), tuple(side // run.backbone.stride for side in size)
    images = to_float(torch.from_numpy(split.photos.transpose(0, 3, 1, 2).copy()))
    batch = max(1, 4 * 320 * 320 // (size[0] * size[1]))
    parts = [slice(start, start + batch) for start in range(0, count, batch)]

    def codes_of(part: slice) -> torch.Tensor:
        return run.codes(run.features(images[part]))

    codes = [codes_of(part) for part in parts]
    whole = {
        "pass, written down": lambda: _joined(written_down(run, codes_of(part), grid, labels[part]) for part in parts),
        "pass, depthg": lambda: {
            name: table
            for (_, _, name), table in EvaluationPass(run, probe_read_outs(run), [PLAIN], classes)
            .over(split, [FULL])
            .items()
        },
        "backbone and head alone": lambda: [codes_of(part) for part in parts],
    }
    alone = {
        "read-outs, written down": lambda: _joined(
            written_down(run, own, grid, labels[part]) for own, part in zip(codes, parts, strict=True)
        ),
        "read-outs, depthg": lambda: _joined(
            ours(run, own, grid, labels[part]) for own, part in zip(codes, parts, strict=True)
        ),
    }
    peaks = {name: common.peak_memory(call) for name, call in reversed(alone.items())}
    for calls in (whole, alone):
        expected, found = (call() for call in list(calls.values())[:2])
        for name, counts in expected.items():
            share = np.abs(counts - found[name]).sum() / 2 / counts.sum()
            assert share <= MOST_DIFFERENT, f"{name}: {share:.1e} of the pixels differ"
    rows = []
    for calls in (whole, alone):
        timings = common.time_all(calls, budget_s=budget_s)
        first = next(iter(timings.values())).median
        floor = timings.get("backbone and head alone")
        for name, timing in timings.items():
            median, p20, p80 = (value / count for value in (timing.median, timing.p20, timing.p80))
            peak = peaks.get(name)
            rows.append(
                Row(
                    f"{classes} classes, {size[0]} x {size[1]}", name, median, p20, p80, timing.runs, 1e3 / median,
                    first / timing.median, timing.median / floor.median if floor else None,
                    peak / 1e6 if peak is not None else None,
                )
            )  # fmt: skip
    return rows


def _joined(parts) -> dict[str, np.ndarray]:
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the table and the machine to this file")
    parser.add_argument("--quick", action="store_true", help="first case only, fewer repeats")
    arguments = parser.parse_args()
    print(common.machine_line())
    rows: list[Row] = []
    for case in CASES[:1] if arguments.quick else CASES:
        rows += measure(*case, 1.0 if arguments.quick else 4.0)
        fields = [field.name for field in dataclasses.fields(Row) if field.name != "case"]
        table = [[getattr(row, field) for field in fields] for row in rows if row.case == rows[-1].case]
        print(f"\n{rows[-1].case}; milliseconds per image")
        print(common.format_table([field.replace("times_", "x ") for field in fields], table), flush=True)
    if arguments.json:
        common.write_json(arguments.json, device="cpu", rows=rows)


if __name__ == "__main__":
    main()
