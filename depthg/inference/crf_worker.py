"""Worker process that refines images with the dense CRF (see crf_pool.py); it unpickles nothing."""

from __future__ import annotations

import json
import sys

from depthg.inference.crf import CrfSettings, crf_ids
from depthg.runtime.worker_pool import Arrays, serve


def main() -> None:
    """Refines images from standard input until it is closed."""
    settings = CrfSettings(**json.loads(sys.argv[1]))

    def refine(job: Arrays) -> Arrays:
        return crf_ids(job.pop("image"), job, settings)

    serve(refine)


if __name__ == "__main__":
    main()
