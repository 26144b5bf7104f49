"""depthg: fast kernels, trainer and evaluator for depth-guided unsupervised semantic segmentation."""

from typing import TYPE_CHECKING, Any

from depthg.runtime.environment import set_defaults

if TYPE_CHECKING:
    from depthg.inference.segmenter import Segmenter as Segmenter

__version__ = "0.1.0"

set_defaults()  # before anything imports torch


def __getattr__(name: str) -> Any:
    """``from depthg import Segmenter`` imports it then: ``import depthg`` alone stays light."""
    if name != "Segmenter":
        raise AttributeError(f"module 'depthg' has no attribute {name!r}")
    from depthg.inference.segmenter import Segmenter

    return Segmenter
