"""Time to segment photos, against that of the backbone alone on the same photos: ``python bench/predict.py``.

    python bench/predict.py [--device cpu|cuda] [--json FILE] [--quick] [--photos N] [--size HxW] [--folder DIR]

Runs have random weights of the real sizes, so their maps are rougher than trained ones and up-sampling them costs more.
Milliseconds per photo, wall clock, of
- backbone: the network alone, on decoded and scaled photos, 8 windows at a time;
- backbone, side by side: the same with one photo per thread and one thread per core;
- published, in both ways: `extract_features` of the package efficientnet_lite_pytorch, the source of the weights, if it
  is installed (the vision transformer is already that of the package transformers);
- files: Pillow alone, decoding each JPEG, encoding it again and encoding the id PNG, in memory, one photo per core;
- segmenter: `Segmenter.predict_many` on decoded photos: scaling, network, head, probe, ids at the photo's size;
- command: the work of `python -m depthg.predict` after loading the run: reading JPEGs, all of the above, writing the id
  PNG and the overlay JPEG of each photo (in threads beside the network).
Overheads are relative to the fastest way to run the backbone: this package's, and the published one.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from depthg.backbones import Backbone, load_backbone
from depthg.backbones.dino import DINO
from depthg.backbones.efficientnet import find_weights
from depthg.config.schema import Config
from depthg.data.files import IMAGE_SUFFIXES, image_size, list_files, read_image
from depthg.data.transforms import to_float
from depthg.features.transform import FeatureTransform
from depthg.inference.photo_files import RUN_LENGTHS, plan, predict_files, with_palette
from depthg.inference.segmenter import Segmenter
from depthg.inference.windows import cut
from depthg.model.checkpoints import save_checkpoint
from depthg.model.converted import convert
from depthg.model.heads import ClusterProbe, SegmentationHead
from depthg.storage.whole_files import write_text

CODES, CLUSTERS = 70, 27


@dataclasses.dataclass(frozen=True)
class Row:
    backbone: str
    network_size: str
    contender: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    over_backbone: float
    over_published: float | None


def write_dino(folder: Path) -> Path:
    """A run on DINO ViT-S/8, converted from a checkpoint in STEGO's format with random weights."""
    width, layers = DINO["dino_vits8_300ep"].embed_dim, 12
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 785, width), "patch_embed.proj.weight": (width, 3, 8, 8)}
    shapes |= {name: (width,) for name in ("patch_embed.proj.bias", "norm.weight", "norm.bias")}
    for block in (f"blocks.{i}." for i in range(layers)):
        for name, (d_out, d_in) in {
            "attn.qkv": (3, 1),
            "attn.proj": (1, 1),
            "mlp.fc1": (4, 1),
            "mlp.fc2": (1, 4),
        }.items():
            shapes |= {f"{block}{name}.weight": (d_out * width, d_in * width), f"{block}{name}.bias": (d_out * width,)}
        shapes |= {f"{block}{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
    shapes = {f"net.model.{name}": shape for name, shape in shapes.items()}
    for name, d_out, d_in in (("1.0", CODES, width), ("2.0", width, width), ("2.2", CODES, width)):
        shapes |= {f"net.cluster{name}.weight": (d_out, d_in, 1, 1), f"net.cluster{name}.bias": (d_out,)}
    shapes["cluster_probe.clusters"] = (CLUSTERS, CODES)
    torch.manual_seed(0)
    state = {name: torch.randn(shape) / max(1, shape[-1]) ** 0.5 for name, shape in shapes.items()}
    torch.save({"state_dict": state, "hyper_parameters": {"cfg": {"arch": "dino"}}}, folder / "stego.ckpt")
    return convert(folder / "stego.ckpt", folder / "dino_vits8")


def write_efficientnet(folder: Path) -> Path:
    """A run on EfficientNet-Lite0 with a random head, with the sizes of the CamVid preset."""
    backbone, run = load_backbone("efficientnet_lite0"), folder / "efficientnet_lite0"
    config = Config(n_classes=CLUSTERS)
    config.backbone.standardize, config.backbone.pca, config.head.dim = True, 128, CODES
    torch.manual_seed(0)
    transform = FeatureTransform(backbone.stages, 128)
    transform.basis.normal_()
    modules = {"transform": transform, "head": SegmentationHead(128, CODES), "cluster": ClusterProbe(CODES, CLUSTERS)}
    header = {"backbone": "efficientnet_lite0", "stages": list(backbone.stages), "classes": []}
    write_text(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
    save_checkpoint(run / "checkpoints" / "last", modules, {}, header)
    return run


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Writes JPEGs with structure at several scales and some noise."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(count):
        image = np.zeros((*size, 3), np.float32)
        for cells in (4, 16, 64):
            part = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            image += np.asarray(part.resize(size[::-1], Image.Resampling.BICUBIC), np.float32) / 3
        image += rng.normal(0, 4, image.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "photos" / f"{number:03d}.jpg", quality=90)
    return folder / "photos"


def published(backbone: Backbone) -> Callable[[torch.Tensor], object] | None:
    """The network as published in its package; None without the package, or if ours already is a package's network."""
    if backbone.name != "efficientnet_lite0":
        return None
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        print("efficientnet_lite_pytorch is not installed: no times of the published network")
        return None
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(find_weights()))
    network.to(backbone.mean.device).eval()

    @torch.inference_mode()
    def features(images: torch.Tensor) -> object:
        return network.extract_features((images - backbone.mean) / backbone.std)

    return features


def measure(run: Path, photos: list[Path], out: Path, device: str, window: str | int, rounds: int) -> list[Row]:
    segmenter = Segmenter.load(run, device=device, window=window)
    arrays = [read_image(path) for path in photos]
    prepared = [segmenter.prepare(array) for array in arrays]
    targets = plan([(path, path.name) for path in photos], out, "jpg", False)

    windows = [window for photo in prepared for window in cut(photo.pixels, photo.plan)]
    batches = [torch.from_numpy(np.stack(windows[i : i + 8])) for i in range(0, len(windows), 8)]
    single = [torch.from_numpy(np.stack(cut(photo.pixels, photo.plan))) for photo in prepared]

    def ways(name: str, network: Callable[[torch.Tensor], object]) -> dict[str, Callable[[], object]]:
        def one(pixels: torch.Tensor) -> None:
            network(to_float(pixels.to(device).permute(0, 3, 1, 2)))
            if device != "cpu":  # the others end with results on the host
                torch.cuda.synchronize(device)

        def side_by_side() -> None:
            total = torch.get_num_threads()
            with ThreadPoolExecutor(total, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(one, single))
            torch.set_num_threads(total)

        together = {name: lambda: [one(batch) for batch in batches]}
        return together | ({f"{name}, side by side": side_by_side} if device == "cpu" else {})

    found = [part.ids for part in segmenter.predict_many(arrays)]

    def code_files(path: Path, ids: np.ndarray) -> None:
        with Image.open(path) as photo:
            photo.load()
            photo.save(io.BytesIO(), format="JPEG", quality=90)
        with_palette(ids, segmenter.colours).save(io.BytesIO(), format="PNG", compress_type=RUN_LENGTHS)

    def files() -> None:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(code_files, photos, found))

    other = published(segmenter.run.backbone)
    calls = {
        **ways("backbone", segmenter.run.backbone),
        **(ways("published", other) if other else {}),
        "files": files,
        "segmenter": lambda: [part.ids for part in segmenter.predict_many(arrays)],
        "command": lambda: predict_files(segmenter, targets),
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            time.sleep(common.REST_S)
            milliseconds = common.time_once(call, "cpu") / len(photos)
            if number:  # the first round warms up
                samples[name].append(milliseconds)
    timings = {name: common.summary(values) for name, values in samples.items()}
    n_windows = len(prepared[0].plan.corners)
    size = " x ".join(map(str, prepared[0].plan.size)) + f", {n_windows} windows" * (n_windows > 1)
    ours = min(timing.median for name, timing in timings.items() if name.startswith("backbone"))
    theirs = min((timing.median for name, timing in timings.items() if name.startswith("published")), default=None)
    rows = []
    for name, timing in timings.items():
        shares = timing.median / ours - 1, timing.median / theirs - 1 if theirs else None
        name_of = segmenter.run.config.backbone.name
        rows.append(Row(name_of, size, name, timing.median, timing.p20, timing.p80, *shares))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the table and the machine to this file")
    parser.add_argument("--quick", action="store_true", help="few photos and repeats")
    parser.add_argument("--photos", type=int, default=8, help="synthetic photos")
    parser.add_argument("--size", default="720x960", help="size of the synthetic photos, HxW")
    parser.add_argument("--folder", type=Path, help="folder of photos to use instead")
    args = parser.parse_args()
    size = tuple(int(n) for n in args.size.split("x"))
    count, rounds = (2, 2) if args.quick else (args.photos, 5)
    print(common.machine_line(args.device))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        given = list_files(args.folder, IMAGE_SUFFIXES, recursive=True)[:count] if args.folder else None
        photos = given or list_files(write_photos(folder, count, size))
        sizes = sorted({image_size(path) for path in photos})
        runs = {"efficientnet_lite0": write_efficientnet, "dino_vits8": write_dino}
        for name, write in runs.items():
            run = write(folder)
            rows += measure(run, photos, folder / "out", args.device, "resize", rounds)
            if name == "efficientnet_lite0":
                rows += measure(run, photos, folder / "out", args.device, 224, rounds)
    print(common.format_table([f.name for f in dataclasses.fields(Row)], [dataclasses.astuple(r) for r in rows]))
    if args.json:
        common.write_json(args.json, device=args.device, rows=rows, photos=len(photos), sizes=sizes)


if __name__ == "__main__":
    main()
