"""Fast kernels for unsupervised segmentation and point clouds; the definitions are in ``reference``."""

from depthg.kernels.reference import CorrelationTerm, DepthGLoss, LossSettings

__all__ = ["CorrelationTerm", "DepthGLoss", "LossSettings"]
