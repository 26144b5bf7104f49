"""Rendering of scenes into the cache, and the worker process that does it (see data/scenes.py).

The process takes folder, seed and size as arguments and one picture number per message. It imports neither torch nor
the parent's main module.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from depthg.data.scenery.renderer import render
from depthg.runtime.worker_pool import Arrays, serve
from depthg.storage.whole_files import write_whole


def scene_file(folder: Path, index: int) -> Path:
    """The file of picture `index`."""
    return folder / f"{index:06d}.npz"


def write_scene(folder: Path, seed: int, index: int, size: int) -> None:
    """Render a picture and write its file atomically."""
    picture = render(seed, index, size)
    camera = picture.camera
    pose = [*camera.position, camera.yaw_deg, camera.pitch_deg, camera.roll_deg, camera.fov_deg]
    target = scene_file(folder, index)

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.savez(file, image=picture.image, label=picture.label, depth=picture.depth, camera=np.array(pose))

    write_whole(target, write, flush=False)


def main() -> None:
    """Renders the pictures whose numbers come on standard input until it closes."""
    folder, seed, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

    def answer(job: Arrays) -> Arrays:
        index = int(job["index"][0])
        if not scene_file(folder, index).exists():  # another run may share the cache
            write_scene(folder, seed, index, size)
        return {}

    serve(answer)


if __name__ == "__main__":
    main()
