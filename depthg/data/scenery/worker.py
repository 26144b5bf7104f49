"""Renders scenes into the cache; also the command `python -m depthg.data.scenery.worker FOLDER SEED SIZE`.

The command reads picture numbers from standard input, one per line, and answers each with the same line once the
file is in place. It is a fresh process, not a fork: the parent may hold torch threads, and neither torch nor the
parent's main module is imported here. It ends when standard input ends, so no worker outlives its parent by more
than one picture.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np

from depthg.data.scenery.renderer import render
from depthg.storage.whole_files import write_whole


def scene_file(folder: Path, index: int) -> Path:
    """The file of picture `index`."""
    return folder / f"{index:06d}.npz"


def write_scene(folder: Path, seed: int, index: int, size: int) -> None:
    """Render a picture and put its file in place, whole or not at all."""
    picture = render(seed, index, size)
    camera = picture.camera
    pose = [*camera.position, camera.yaw_deg, camera.pitch_deg, camera.roll_deg, camera.fov_deg]
    target = scene_file(folder, index)

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.savez_compressed(
                file, image=picture.image, label=picture.label, depth=picture.depth, camera=np.array(pose)
            )

    write_whole(target, write, flush=False)


def main() -> None:
    """Serve picture numbers from standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    folder, seed, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for line in sys.stdin:
        index = int(line)
        if not scene_file(folder, index).exists():  # another run may share the cache
            write_scene(folder, seed, index, size)
        print(index, flush=True)


if __name__ == "__main__":
    main()
