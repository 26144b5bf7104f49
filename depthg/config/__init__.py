"""Settings: their schema, presets and how they are composed."""

from depthg.config.composing import load_config
from depthg.config.schema import Config

__all__ = ["Config", "load_config"]
