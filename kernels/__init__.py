"""Fast kernels for unsupervised segmentation and point clouds; the definitions are in ``reference``."""

from depthg.kernels.correlation import correlation_loss
from depthg.kernels.depth_correlation import depth_correlation_loss
from depthg.kernels.depthg_loss import depthg_loss
from depthg.kernels.fps import farthest_point_sample, farthest_point_sample_depth, unproject
from depthg.kernels.reference import CorrelationTerm, DepthGLoss, LossSettings, correlation_histogram, sample_points

__all__ = [
    "CorrelationTerm",
    "DepthGLoss",
    "LossSettings",
    "correlation_histogram",
    "correlation_loss",
    "depth_correlation_loss",
    "depthg_loss",
    "farthest_point_sample",
    "farthest_point_sample_depth",
    "sample_points",
    "unproject",
]
