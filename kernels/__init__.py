"""Fast kernels for unsupervised segmentation and point clouds; the definitions are in ``reference``."""

from depthg.kernels.correlation import correlation, correlation_loss
from depthg.kernels.dense_crf import dense_crf
from depthg.kernels.depth_correlation import depth_correlation_loss
from depthg.kernels.depthg_loss import depthg_loss
from depthg.kernels.fps import farthest_point_sample, farthest_point_sample_depth, unproject
from depthg.kernels.histogram import correlation_histogram
from depthg.kernels.nt_xent import nt_xent_loss
from depthg.kernels.reference import CorrelationTerm, DepthGLoss, LossSettings
from depthg.kernels.reference_crf import CrfSettings
from depthg.kernels.sample_points import sample_points

__all__ = [
    "CorrelationTerm",
    "CrfSettings",
    "DepthGLoss",
    "LossSettings",
    "correlation",
    "correlation_histogram",
    "correlation_loss",
    "dense_crf",
    "depth_correlation_loss",
    "depthg_loss",
    "farthest_point_sample",
    "farthest_point_sample_depth",
    "nt_xent_loss",
    "sample_points",
    "unproject",
]
