"""Frozen features: what follows the backbone, and a cache of memory-mapped arrays that is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from depthg.kernels.reference import normalize

CACHE_VERSION = 1
STALE = 3600  # seconds without a write after which a partial build counts as killed


def cached(root: Path, kind: str, settings: dict, build: Callable[[Path], None]) -> Path:
    """The folder of arrays that belong to exactly these settings; ``build(folder)`` is called when there is none.

    The folder's name is a hash of the settings, which lie beside the arrays in ``manifest.json``, written last. A
    killed build leaves only a temporary folder, which is never taken for whole.
    """
    text = json.dumps({"version": CACHE_VERSION, **settings}, sort_keys=True, indent=1)
    key = hashlib.sha256(text.encode()).hexdigest()[:20]
    folder = root / kind / key
    if is_whole(folder):
        return folder
    partial = root / kind / f".{key}.{os.getpid()}"
    for left in root.glob(f"{kind}/.{key}.*"):  # of killed builds; younger ones may belong to a running process
        if left == partial or time.time() - max(path.stat().st_mtime for path in (left, *left.iterdir())) > STALE:
            shutil.rmtree(left, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        build(partial)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        manifest = {"settings": json.loads(text), "bytes": sizes}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        if not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    except OSError as error:
        if is_whole(folder):  # another process finished the same cache first
            return folder
        if error.filename and not str(error.filename).startswith(str(root)):
            raise  # about the data, not the cache
        raise OSError(f"cannot write the cache in {root}: {error}; set cache.dir to a folder with room") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether every file named by the manifest is there in full."""
    try:
        sizes = json.loads((folder / "manifest.json").read_text())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


class FeatureTransform(nn.Module):
    """Standardises each channel, L2-normalises each stage of a hypercolumn, projects to fewer dimensions.

    Args:
        stages: channels of each stage; their sum is C.
        pca: output dimensions D, 0 for none (D = C).
        standardize: off, the transform is the identity (with ``pca`` = 0) or the projection alone.
    """

    def __init__(self, stages: tuple[int, ...], pca: int = 0, standardize: bool = True):
        super().__init__()
        channels = sum(stages)
        if pca > channels:
            raise ValueError(f"backbone.pca={pca} exceeds the {channels} feature channels")
        self.stages, self.standardize = tuple(stages), standardize
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("basis", torch.zeros(channels, pca))

    @property
    def channels(self) -> int:
        return self.basis.shape[1] or self.mean.shape[0]

    @property
    def is_identity(self) -> bool:
        return not self.standardize and not self.basis.shape[1]

    def _stagewise(self, x: Tensor) -> Tensor:  # [..., C]
        if not self.standardize:
            return x
        x = (x - self.mean) * self.scale
        return torch.cat([normalize(stage) for stage in x.split(self.stages, dim=-1)], dim=-1)

    def forward(self, x: Tensor) -> Tensor:  # [..., C] -> [..., D]
        x = self._stagewise(x.float())
        return x @ self.basis if self.basis.shape[1] else x

    def fit(self, chunks: Callable[[], Iterator[Tensor]]) -> FeatureTransform:
        """Fits mean and scale, then the basis (leading eigenvectors of the second moment) on ``[rows, C]`` chunks."""
        if self.standardize:
            count, total, square = 0, 0.0, 0.0
            for x in chunks():
                x = x.double()
                count, total, square = count + len(x), total + x.sum(0), square + (x * x).sum(0)
            mean = total / count
            deviation = (square / count - mean**2).clamp(min=0).sqrt()
            self.mean.copy_(mean)
            self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0.0))
        if self.basis.shape[1]:
            moment = torch.zeros(len(self.mean), len(self.mean), dtype=torch.float64)
            for x in chunks():
                x = self._stagewise(x.float())
                moment += (x.T @ x).double()
            vectors = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, : self.basis.shape[1]]
            self.basis.copy_(vectors * vectors.sum(0).sign())
        return self


def write_features(
    folder: Path,
    batches: Iterator[Tensor],  # [B, C, h, w] per batch
    count: int,
    transform: FeatureTransform,
    fit: bool,
) -> None:
    """Writes ``features.npy`` float16 ``[count, h*w, D]`` and ``transform.safetensors`` from backbone outputs.

    The backbone runs once: its raw output is kept on disk until the transform is fitted, then replaced.
    """
    from safetensors.torch import save_file

    raw, start = None, 0
    for batch in batches:
        rows = batch.flatten(2).transpose(1, 2).half().cpu().numpy()
        if raw is None:
            raw = np.lib.format.open_memmap(folder / "raw.npy", "w+", np.float16, (count, *rows.shape[1:]))
        raw[start : start + len(rows)] = rows
        start += len(rows)
    if raw is None or start != count:
        raise ValueError(f"{start} of {count} images reached the feature cache")
    if fit:
        transform.fit(lambda: (torch.from_numpy(part).flatten(0, 1) for part in _parts(raw)))
    save_file(transform.state_dict(), folder / "transform.safetensors")
    if transform.is_identity:
        raw.flush()
        (folder / "raw.npy").rename(folder / "features.npy")
        return
    shape = (count, raw.shape[1], transform.channels)
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, shape)
    start = 0
    for part in _parts(raw):
        features[start : start + len(part)] = transform(torch.from_numpy(part)).half().numpy()
        start += len(part)
    features.flush()
    (folder / "raw.npy").unlink()


def _parts(array: np.ndarray, rows: int = 16) -> Iterator[np.ndarray]:
    for start in range(0, len(array), rows):
        yield np.array(array[start : start + rows])
