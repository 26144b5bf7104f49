"""Procedural outdoor RGB-D scenes with eight classes: a data set that needs no download and has true depth and labels.

Every picture depends on (seed, index) alone: train, val and test are disjoint ranges of the index of one seed.
The pictures are rendered once into a cache folder named after the renderer, the seed and the size (written out in
`settings.json` beside them), one .npz each; whatever is missing or damaged is rendered again. See scenery/renderer.py
for what a pixel means.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from depthg.data.scenery.primitives import Camera
from depthg.data.scenery.worker import scene_file, write_scene
from depthg.runtime.read_ahead import ahead
from depthg.runtime.worker_pool import ONE_THREAD, WorkerEnded, WorkerPool, array_text, available_cores
from depthg.storage.whole_files import remove_partials

CLASSES = ("sky", "road", "grass", "building", "tree", "car", "person", "pole")
PALETTE = np.array(
    [
        (126, 178, 232),
        (128, 100, 140),
        (154, 205, 80),
        (150, 110, 90),
        (30, 110, 50),
        (215, 40, 50),
        (255, 150, 30),
        (250, 230, 70),
    ],
    dtype=np.uint8,
)
SPLIT_START = {"train": 0, "val": 100_000, "test": 200_000}
MAX_IMAGES = 100_000  # per split
RENDERER = "4e75078be3ce84ed"  # names what a picture looks like: a new value whenever its pixels change (tests)
# For glibc: memory of one picture is kept for the next instead of being returned to the system after every step.
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
OS_ERRORS = {"OSError", *(kind.__name__ for kind in OSError.__subclasses__())}
DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


class SceneSplit:
    """A range of rendered scenes (see base.Split)."""

    def __init__(self, folder: Path, seed: int, size: int, name: str, count: int):
        self.folder, self.seed, self.picture_size = folder, seed, size
        self.indices = range(SPLIT_START[name], SPLIT_START[name] + count)
        self.names = [f"{name}_{i:04d}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:  # uint8 [H, W, 3]
        """The photo as RGB."""
        return self._read(index, "image")

    def label(self, index: int) -> np.ndarray:  # int64 [H, W]
        """The class of every pixel centre; no pixel is void."""
        return self._read(index, "label").astype(np.int64)

    def depth(self, index: int) -> np.ndarray:  # float32 [H, W]
        """True z-depth of every pixel centre in metres, inf = sky."""
        return self._read(index, "depth")

    def fov_deg(self, index: int) -> float:
        """Horizontal field of view in degrees."""
        return self.camera(index).fov_deg

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the photo."""
        return self.picture_size, self.picture_size

    def camera(self, index: int) -> Camera:
        """Pose and field of view."""
        x, y, z, yaw, pitch, roll, fov = self._read(index, "camera").tolist()
        return Camera((x, y, z), yaw, pitch, roll, fov)

    def _read(self, index: int, part: str) -> np.ndarray:
        number = self.indices[index]
        path = scene_file(self.folder, number)
        try:
            return _load(path, part, self.picture_size)
        except DAMAGED as error:
            warnings.warn(f"rendering {path} again, it could not be read: {error}", stacklevel=3)
        write_scene(self.folder, self.seed, number, self.picture_size)
        return _load(path, part, self.picture_size)


class SceneDataset:
    """The procedural scenes (see base.Dataset), rendered into the cache if they are missing.

    `test` is a third split that no setting was chosen on; it is rendered at its first use.

    Args:
        cache_dir: folder that holds the caches of all settings.
        seed: of the whole series of scenes.
        n_train, n_val, n_test: photos per split. They do not change what the photos show.
        size: height and width in pixels.
        workers: processes that render; None for one per available core, at most 8.
        progress: show a progress bar while rendering.

    Raises:
        ValueError: a number out of range.
        OSError: a picture cannot be written.
        RuntimeError: a rendering process stopped.
    """

    name = "scenes"
    classes = CLASSES
    palette = PALETTE
    note = ""

    def __init__(
        self,
        cache_dir: str | os.PathLike,
        seed: int = 0,
        n_train: int = 300,
        n_val: int = 60,
        n_test: int = 60,
        size: int = 224,
        *,
        workers: int | None = None,
        progress: bool = True,
    ):
        for key, count in (("n_train", n_train), ("n_val", n_val), ("n_test", n_test)):
            if not 1 <= count <= MAX_IMAGES:
                raise ValueError(f"data.{key}={count} is out of range: pass 1 to {MAX_IMAGES}")
        if seed < 0:
            raise ValueError(f"the scenes' seed is {seed}: pass 0 or more")
        if not 32 <= size <= 2048:
            raise ValueError(f"data.size={size} is out of range: scenes are rendered at 32 to 2048 pixels")
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers}: pass 1 or more, or None for one per core")
        settings = {"data": "scenes", "renderer": RENDERER, "seed": seed, "size": size}
        text = json.dumps(settings, indent=2, sort_keys=True)
        self.folder = Path(cache_dir) / f"scenes-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self.seed, self.size, self.n_test = seed, size, n_test
        self.workers, self.progress = (
            workers or min(8, available_cores()),
            progress,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(text + "\n")
        self.train, self.val = self._split("train", n_train), self._split("val", n_val)
        self._render([*self.train.indices, *self.val.indices])

    @cached_property
    def test(self) -> SceneSplit:
        """Held-out photos."""
        split = self._split("test", self.n_test)
        self._render(split.indices)
        return split

    def _split(self, name: str, count: int) -> SceneSplit:
        return SceneSplit(self.folder, self.seed, self.size, name, count)

    def _render(self, indices: Sequence[int]) -> None:
        missing = [index for index in indices if not scene_file(self.folder, index).exists()]
        if not missing:
            return
        remove_partials(self.folder)
        # runs that share the cache start at different places, so that they divide the work
        missing = np.random.default_rng(os.getpid()).permutation(missing).tolist()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, disable=not self.progress) as bar:
            task = bar.add_task("rendering scenes", total=len(missing))
            render_files(self.folder, self.seed, self.size, missing, self.workers, lambda: bar.advance(task))


def render_files(
    folder: Path, seed: int, size: int, indices: Sequence[int], workers: int, advance: Callable[[], None]
) -> None:
    """Render the pictures with these numbers into the folder in `workers` processes; call `advance` after each."""
    workers = min(workers, len(indices))
    if workers < 2 or not sys.executable:
        for index in indices:
            write_scene(folder, seed, index, size)
            advance()
        return
    command = ["depthg.data.scenery.worker", str(folder.absolute()), str(seed), str(size)]
    environment = ONE_THREAD | KEPT_MEMORY
    with WorkerPool(command, workers, environment) as pool:  # ends them also after Ctrl-C; what is finished is kept
        for _ in ahead(pool.threads, lambda index: _ask(pool, index), indices, 2 * workers):
            advance()


def _ask(pool: WorkerPool, index: int) -> None:
    """Sends a picture number to a worker and waits for the file."""
    kept = "the finished pictures are kept: start again to go on"
    try:
        answer = pool.ask({"index": np.array([index])})
    except WorkerEnded as error:
        raise RuntimeError(
            f"a process that renders scenes stopped at picture {index} (exit code {error.args[0]}); {kept}"
        ) from None
    if "error" in answer:
        kind, text = (array_text(answer[key]) for key in ("type", "error"))
        failure = OSError if kind in OS_ERRORS else RuntimeError
        raise failure(f"picture {index} could not be rendered: {kind}: {text}; {kept}")


def _load(path: Path, part: str, size: int) -> np.ndarray:
    with np.load(path) as stored:
        array = stored[part]
    if part != "camera" and array.shape[:2] != (size, size):
        raise ValueError(f"it holds {array.shape[0]} x {array.shape[1]} pixels, not {size} x {size}")
    return array
