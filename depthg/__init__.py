"""depthg: fast kernels, trainer and evaluator for depth-guided unsupervised semantic segmentation."""

__version__ = "0.1.0"
