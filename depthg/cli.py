"""Former import path of ``depthg.config.load_config``, kept for compatibility."""

from depthg.config import load_config

__all__ = ["load_config"]
