"""The former place of ``depthg.config.load_config``."""

from depthg.config import load_config

__all__ = ["load_config"]
