"""pydensecrf2 as this package used it: both probes on one lattice, an image per worker process; for bench/crf.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from depthg.inference.crf import LEAST_PROBABILITY, probe_log_probabilities
from depthg.kernels import CrfSettings
from depthg.runtime.worker_pool import ONE_THREAD, Arrays, WorkerPool, array_text, serve

SETTINGS = CrfSettings()
# The filters allocate and free tens of megabytes per iteration. By default glibc returns them to the system each time,
# and page faults took a third of the run time.
ENVIRONMENT = {
    **ONE_THREAD,
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}


def refine(image: np.ndarray, unary: Sequence[np.ndarray]) -> list[np.ndarray]:  # uint8 [H, W, 3], float32 [n, H, W]
    """Marginals float32 [n, H, W] of each unary term; terms with equal numbers of classes share a lattice."""
    from pydensecrf.densecrf import DenseCRF2D

    height, width = image.shape[:2]
    lattices: dict[int, DenseCRF2D] = {}
    found = []
    for term in unary:
        n = len(term)
        if n not in lattices:
            lattices[n] = DenseCRF2D(width, height, n)
            lattices[n].addPairwiseGaussian(sxy=SETTINGS.gaussian_sxy, compat=SETTINGS.gaussian_weight)
            lattices[n].addPairwiseBilateral(
                sxy=SETTINGS.bilateral_sxy, srgb=SETTINGS.bilateral_srgb, compat=SETTINGS.bilateral_weight,
                rgbim=np.ascontiguousarray(image[:, :, ::-1]),  # BGR, as in the released code
            )  # fmt: skip
        lattices[n].setUnaryEnergy(np.ascontiguousarray(term.reshape(n, -1)))
        found.append(np.asarray(lattices[n].inference(SETTINGS.iterations)).reshape(n, height, width))
    return found


def crf_ids(image: np.ndarray, maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:  # int16 [H, W]
    """What ``depthg.inference.crf.crf_ids`` gives, by pydensecrf2."""
    terms = probe_log_probabilities(maps, image.shape[:2])
    unary = [-np.maximum(term, np.float32(np.log(LEAST_PROBABILITY))) for term in terms.values()]
    # pydensecrf stores the classes of a pixel contiguously, so this arg-max reads contiguous values.
    marginals = (q.transpose(1, 2, 0).argmax(2).astype(np.int16) for q in refine(image, unary))
    return dict(zip(terms, marginals, strict=True))


class CrfPool:
    """Processes that refine images in parallel; use it in a ``with`` block, which ends them."""

    def __init__(self, workers: int):
        self._pool = WorkerPool(["pydensecrf_pool"], workers, ENVIRONMENT)

    def __enter__(self) -> CrfPool:
        return self

    def __exit__(self, *error) -> None:
        self._pool.__exit__(*error)

    def submit(self, image: np.ndarray, maps: Mapping[str, np.ndarray]) -> Future:
        """A future of ``crf_ids(image, maps)``."""
        return self._pool.submit(self._ask, {"image": image, **maps})

    def _ask(self, job: Arrays) -> Arrays:
        answer = self._pool.ask(job)
        if "error" in answer:
            raise ValueError(f"{array_text(answer['type'])}: {array_text(answer['error'])}")
        return answer


if __name__ == "__main__":
    serve(lambda job: crf_ids(job.pop("image"), job))
