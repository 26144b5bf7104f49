"""Files of probabilities: ``.npz`` with float16 [clusters, H, W] and the names of the clusters."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from depthg.storage.whole_files import write_error, write_whole


class ProbabilityRows:
    """Probabilities that come in blocks of rows, kept in a nameless file of ``folder`` until they are written.

    Args:
        folder: on the disk of the result; made if needed.
        shape: [clusters, H, W].

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]):
        self.shape = shape
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)
        except OSError as error:
            raise write_error(folder, error) from error

    def __enter__(self) -> ProbabilityRows:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def put(self, start: int, block: np.ndarray) -> None:  # [clusters, rows, W]
        """Takes the rows from ``start`` on."""
        for cluster, rows in enumerate(block.astype(np.float16)):
            self._file.seek((cluster * self.shape[1] + start) * self.shape[2] * rows.itemsize)
            self._file.write(np.ascontiguousarray(rows).data)

    def write(self, path: Path, names: Sequence[str]) -> None:
        """Writes the ``.npz`` file that ``numpy.savez`` would."""
        header = {"descr": "<f2", "fortran_order": False, "shape": self.shape}
        with zipfile.ZipFile(path, "w") as file:
            with file.open("probabilities.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                self._file.seek(0)
                shutil.copyfileobj(self._file, member, 1 << 22)
            with file.open("names.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(names))


def write_probabilities(path: Path, found: np.ndarray | ProbabilityRows, names: Sequence[str]) -> None:
    """Writes ``probabilities`` (float16 [clusters, H, W]) and ``names``, whole or not at all."""

    def write(partial: Path) -> None:
        if isinstance(found, ProbabilityRows):
            found.write(partial, names)
            return
        with open(partial, "wb") as file:  # given a path, numpy.savez would add a suffix
            np.savez(file, probabilities=found.astype(np.float16), names=np.array(names))

    write_whole(path, write, flush=False)
