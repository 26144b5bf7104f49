"""Depth networks of the package transformers: photos in, depth out, from a folder, the hub's cache or the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from depthg.backbones.vit import (
    Source,
    find_source,
    from_pretrained,
    import_transformers,
    preprocessor_file,
    quiet,
    read_config,
)
from depthg.data.files import DataError
from depthg.depth.preprocess import read_preprocessing
from depthg.runtime.device import to_device

DEFAULT_MODEL = "Intel/zoedepth-nyu-kitti"
OUTPUTS = ("auto", "metres", "inverse")
ARCHITECTURES = {"zoedepth": "ZoeDepth", "depth_anything": "Depth Anything", "dpt": "DPT"}
# The deepest fusion block has nothing to add to its input; many DPT checkpoints leave these weights out.
UNUSED = r"(.*\.)?fusion_stage\.layers\.0\.residual_layer1\.|(.*\.)?pooler\."
NEAR, FAR = 1e-2, 1e3  # metres that stored depth can tell apart
_LEVELS = 65535


@dataclass(frozen=True)
class Prediction:
    """Depth of one photo at the network's resolution.

    Attributes:
        values: float32 [h, w]; metres, or inverse depth of unknown scale and offset (large is near).
        metric: which of the two.
    """

    values: np.ndarray
    metric: bool


class DepthNetwork:
    """A monocular depth network and its preprocessing. The weights are loaded at the first use.

    Args:
        model: a transformers folder, or a hub id; ZoeDepth, Depth Anything (1, 2, metric or not) or DPT.
        flip: average with the prediction of the mirrored photo.
        output: "metres", "inverse" (relative inverse depth), or "auto": ZoeDepth, metric Depth Anything and DPT on
            DINOv2 give metres, other Depth Anything and DPT inverse depth.
        device: where it runs, in float32.
        give: the option that names the model, for messages.

    Raises:
        FileNotFoundError: the model is neither on this machine nor available for download; the message says what to
            download and where to put it.
        ValueError: another architecture, or damaged files.
        ImportError: transformers is not installed, or older than 5.5.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        flip: bool = False,
        output: str = "auto",
        device: str | torch.device = "cpu",
        give: str = "depth.model=FOLDER",
    ):
        if output not in OUTPUTS:
            raise ValueError(f"depth.output={output!r} is not one of {', '.join(OUTPUTS)}")
        import_transformers(f"the depth network {model}")
        self.source = find_source(model, "the depth network", give=give)
        with quiet():
            self.config = read_config(self.source)
        if self.config.model_type not in ARCHITECTURES:
            raise ValueError(
                f"{self.source.label} holds a {self.config.model_type} model, which is no depth network known here; "
                f"pass {give} (or a hub id) of {', '.join(ARCHITECTURES.values())}, for instance {DEFAULT_MODEL}"
            )
        self.name, self.flip, self.device = str(model), flip, torch.device(device)
        self.metric = _gives_metres(self.config) if output == "auto" else output == "metres"
        self.preprocessing = read_preprocessing(preprocessor_file(self.source), self.config)
        self._lock = Lock()

    @cached_property
    def model(self) -> torch.nn.Module:
        """The network itself, loaded at the first use."""
        from transformers import AutoModelForDepthEstimation

        model = from_pretrained(AutoModelForDepthEstimation, self.source, unused=UNUSED, config=self.config)
        return model.requires_grad_(False).eval().to(self.device)

    @cached_property
    def identity(self) -> str:
        """16 hexadecimal digits that depend on the checkpoint's files, the flip and the kind of output."""
        files = checkpoint_files(self.source)
        if not files:
            self.model  # noqa: B018 (downloads)
            files = checkpoint_files(self.source)
        digest = hashlib.sha256(f"{self.flip} {self.metric}".encode())
        for path in files:
            digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
            with open(path, "rb") as file:
                while block := file.read(2**24):
                    digest.update(block)
        return digest.hexdigest()[:16]

    def unload(self) -> None:
        """Frees the network's memory; the next prediction loads it again."""
        with self._lock:
            self.__dict__.pop("model", None)

    def prepare(self, image: np.ndarray) -> Tensor:  # uint8 [H, W, 3] -> float32 [3, h, w]
        """The network's input for a photo, on the CPU; inputs of one shape can be predicted together."""
        return self.preprocessing.to_input(image)

    def predict(self, inputs: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        """Depth of some photos; safe to call from several threads.

        Args:
            inputs: what `prepare` gave, stacked [B, 3, h, w].
            sizes: height and width of the photos.
        """
        with self._lock, torch.inference_mode():
            inputs = to_device(inputs, self.device)
            depth = self._run(inputs)
            if self.flip:
                depth = (depth + self._run(inputs.flip(-1)).flip(-1)) / 2
            trimmed = [
                self.preprocessing.trim(one, self.preprocessing.input_size(*size)).cpu().numpy()
                for one, size in zip(depth, sizes, strict=True)
            ]
        return [Prediction(values, self.metric) for values in trimmed]

    def _run(self, inputs: Tensor) -> Tensor:  # [B, 3, h, w] -> [B, h', w']
        """Output of the network for each photo as if it were alone.

        ZoeDepth with an indoor and an outdoor head selects one head per batch by majority vote. Photos of the minority
        go through the network again as a separate batch.
        """
        result = self.model(pixel_values=inputs)
        depth, domains = result.predicted_depth.float(), getattr(result, "domain_logits", None)
        if domains is not None and len(inputs) > 1:
            other = domains.argmax(-1) != domains.sum(0).argmax()
            for domain in domains.argmax(-1)[other].unique():
                rows = domains.argmax(-1) == domain
                depth[rows] = self.model(pixel_values=inputs[rows]).predicted_depth.float()
        return depth

    def finish(self, prediction: Prediction, size: tuple[int, int]) -> np.ndarray:  # float32 [H, W]
        """Depth at a photo's size: metres, or from relative inverse depth values in [0, 1], near 0 and far 1.

        Inverse depth d has neither scale nor offset, so each photo is scaled by itself: `1 - (d - min) / (max - min)`,
        with minimum and maximum at the network's resolution. Like `z / (z + scale)`, this has its steep part where
        things are near.
        """
        values = torch.from_numpy(prediction.values)
        if not prediction.metric:
            low, high = values.min(), values.max()
            values = (values - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
        depth = self.preprocessing.to_photo(values, *size)
        return (depth.clamp(NEAR, FAR) if prediction.metric else 1 - depth.clamp(0, 1)).numpy()

    def __call__(self, image: np.ndarray) -> np.ndarray:  # uint8 [H, W, 3] -> float32 [H, W]
        """Depth of one photo, as `finish`."""
        size = image.shape[:2]
        prediction = self.predict(self.prepare(image)[None], [size])[0]
        check_finite(prediction, "this photo", self.source.label)
        return self.finish(prediction, size)


def _gives_metres(config) -> bool:
    """True if a network predicts metres. DPT configurations do not say so; the metric ones have `add_projection`."""
    if config.model_type == "depth_anything":
        return config.depth_estimation_type == "metric"
    return config.model_type == "zoedepth" or bool(config.add_projection)


def check_finite(prediction: Prediction, photo: str, network: str) -> None:
    """Raise DataError when a network's output has NaN or infinity."""
    if not np.isfinite(prediction.values).all():
        raise DataError(f"{network} gives depth that is not finite for {photo}; are its weights damaged?")


def checkpoint_files(source: Source) -> list[Path]:
    """Configuration and weights of a checkpoint on this machine, sorted by name; empty before the download."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(source.path)
    if not folder.is_dir():
        cached = try_to_load_from_cache(source.path, "config.json")
        if not isinstance(cached, str):
            return []
        folder = Path(cached).parent
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    settings = [folder / name for name in ("config.json", "preprocessor_config.json")]
    return [path for path in settings if path.is_file()] + weights if weights else []


# ---- 16 bits per pixel


def encode(prediction: Prediction) -> np.ndarray:  # uint16 [h, w]
    """A prediction in 16 bits: metres on a logarithmic scale (steps of 0.02%), inverse depth between its extremes."""
    values = prediction.values.astype(np.float64)
    if prediction.metric:
        share = np.log(values.clip(NEAR, FAR) / NEAR) / np.log(FAR / NEAR)
    else:
        share = (values - values.min()) / max(np.ptp(values), np.finfo(np.float32).tiny)
    return np.rint(share * _LEVELS).astype(np.uint16)


def decode(levels: np.ndarray, metric: bool) -> Prediction:  # uint16 [h, w]
    """The inverse of `encode`, up to rounding; inverse depth loses its scale and offset."""
    share = levels.astype(np.float64) / _LEVELS
    values = NEAR * np.exp(share * np.log(FAR / NEAR)) if metric else share
    return Prediction(values.astype(np.float32), metric)
