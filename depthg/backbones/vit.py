"""Vision transformers of the package transformers as feature extractors, from a folder, the hub's cache or the hub."""

from __future__ import annotations

import inspect
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLError
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REACH_TIMEOUT = 5.0  # seconds
PROBE_SIDE = 4  # patches


class VisionTransformer(nn.Module):
    """Patch tokens of a transformers ViT as a feature map.

    forward: images [B, 3, H, W], normalised, H and W multiples of the patch size
    -> one map [B, C, H / patch, W / patch] after the last LayerNorm; class and register tokens are dropped.
    """

    cpu_pixels = 4 * 224 * 224

    def __init__(self, model: Any, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD):
        super().__init__()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # unused, and random when the checkpoint has none
        self.model = model.eval()
        self.mean, self.std = tuple(mean), tuple(std)
        self.stages: tuple[int, ...] = (model.config.hidden_size,)
        self.stride = self.multiple = patch_size(model.config)
        takes_option = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if takes_option else {}
        self.prefix_tokens = self._count_prefix_tokens()

    def _count_prefix_tokens(self) -> int:
        """Class and register tokens before the patch tokens, found with a small image."""
        side, patches = PROBE_SIDE * self.stride, PROBE_SIDE**2
        with torch.inference_mode():
            tokens = self.model(pixel_values=torch.zeros(1, 3, side, side), **self.options).last_hidden_state
        if tokens.ndim != 3 or tokens.shape[1] < patches:
            raise ValueError(f"output {list(tokens.shape)} for {patches} patches is not one token per patch")
        return tokens.shape[1] - patches

    def forward(self, images: Tensor) -> list[Tensor]:
        h, w = images.shape[-2] // self.stride, images.shape[-1] // self.stride
        tokens = self.model(pixel_values=images, **self.options).last_hidden_state
        return [tokens[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, (h, w))]


def load_hf(name: str, weights: Path | None = None) -> VisionTransformer:
    """Any plain vision transformer of transformers (ViT, DeiT, DINOv2 with or without registers, DINOv3 ...).

    Mean and std come from its preprocessor_config.json, else ImageNet's are taken.

    Args: name: "hf:<hub id or folder>"; weights: a local folder instead.
    Raises: FileNotFoundError (no weights; says what to download), ImportError (no transformers),
        ValueError (damaged, or a model that does not give one token per patch).
    """
    transformers = import_transformers(name)
    source = find_source(weights or name.removeprefix("hf:"), name)
    model = from_pretrained(transformers.AutoModel, source)
    processor = preprocessor_file(source)
    settings = json.loads(processor.read_text()) if processor else {}
    mean, std = settings.get("image_mean") or IMAGENET_MEAN, settings.get("image_std") or IMAGENET_STD
    try:
        return VisionTransformer(model, mean, std)
    except Exception as error:  # whatever an unsuitable architecture raises when it is probed
        raise ValueError(f"{name} ({type(model).__name__}) is not a plain vision transformer: {error}") from error


def import_transformers(name: str) -> ModuleType:
    """The package transformers, or an ImportError that names what needs it."""
    try:
        import transformers
    except ImportError as error:
        message = f"{name} needs transformers: python -m pip install 'depthg[transformers]'"
        raise ImportError(message) from error
    return transformers


def patch_size(config) -> int:
    """Side of the square patches in a transformers configuration; ValueError when there is none."""
    size = getattr(config, "patch_size", None)
    sizes = {size} if isinstance(size, int) else set(size or ())
    if len(sizes) != 1:
        raise ValueError(f"patch_size is {size} in its configuration, one number is needed")
    return sizes.pop()


@dataclass(frozen=True)
class Source:
    """What from_pretrained reads: path or hub id, further options, and the name for messages."""

    path: str | None
    label: str
    options: dict = field(default_factory=dict)
    give: str = "backbone.weights=PATH"  # how the user names a local copy


def find_source(where: str | Path, name: str, alternative: str = "", give: str = Source.give) -> Source:
    """A local folder, the hub's local cache, or the hub when it answers within seconds.

    Args: where: folder or hub id; name: the network; alternative: a further download address for the message;
        give: the option that takes a local copy, for the message.
    Raises: FileNotFoundError if none of them has it; the message says what to download.
    """
    folder = Path(where).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} has no config.json; {name} takes a folder saved by transformers")
        return Source(str(folder), str(folder), {"local_files_only": True}, give)
    if folder.is_file():
        raise FileNotFoundError(f"{folder} is a file; {name} takes a folder saved by transformers, or a hub id")
    from huggingface_hub import constants
    from huggingface_hub.utils import HFValidationError

    hub_id = str(where)
    try:
        if _is_cached(hub_id):
            return Source(hub_id, hub_id, {"local_files_only": True}, give)
    except HFValidationError as error:
        raise FileNotFoundError(f"{where} is neither a folder nor a hub id ({name})") from error
    page = f"{constants.ENDPOINT}/{hub_id}"
    reason = (
        "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _why_unreachable(f"{page}/resolve/main/config.json")
    )
    if reason:
        raise FileNotFoundError(
            f"the weights of {name} (hub id {hub_id}) are not on this machine and cannot be downloaded: {reason}. Get "
            f"{page} (config.json and the weights){alternative} and pass {give}"
        )
    return Source(hub_id, hub_id, {}, give)


def _is_cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    found = [isinstance(try_to_load_from_cache(hub_id, file), str) for file in ("config.json", *names)]
    return found[0] and any(found[1:])


def _why_unreachable(url: str) -> str | None:
    """None if the address answers; checked here because the hub client retries for over 20 s without a network."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        if error.code == 404 or error.code >= 500:  # 401 and 403 are left to the hub client, which has the tokens
            return f"{url} answers {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, SSLError):  # the hub client may know certificates that urllib does not
            return f"no answer from {url} ({reason})"
    return None


def from_pretrained(model_class: Any, source: Source, strict: bool = False, unused: str = r"pooler\.", **kwargs) -> Any:
    """`model_class.from_pretrained` in float32 with fused attention; neither code nor pickles of the checkpoint run.

    Args: strict: weights that the model does not have are an error too; unused: pattern of the names of weights that
        may be missing because the network does not use them (they are set to 0).
    Raises: ValueError when other weights are missing, or they cannot be read.
    """
    if model_class.__name__.startswith("Auto"):  # takes fused attention by itself where the architecture has it
        kwargs["trust_remote_code"] = False
    else:
        kwargs["attn_implementation"] = "sdpa"
    try:
        with quiet():
            model, info = model_class.from_pretrained(
                source.path, output_loading_info=True, weights_only=True, **source.options, **kwargs
            )
    except Exception as error:  # transformers, the hub client, safetensors and torch raise many types
        on_hub = source.path and not Path(source.path).is_dir()
        hint = f"; a complete local copy can be passed as {source.give}" if on_hub else ""
        raise ValueError(f"{source.label} could not be loaded as {model_class.__name__}: {error}{hint}") from error
    unneeded = {key for key in info["missing_keys"] if re.match(unused, key)}
    problems = [f"{key} is missing" for key in sorted(set(info["missing_keys"]) - unneeded)]
    problems += [f"{key} differs in shape" for key in sorted(map(str, info["mismatched_keys"]))]
    problems += [f"{key} is unknown" for key in sorted(info["unexpected_keys"]) if strict]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{source.label} does not fit {type(model).__name__}: {'; '.join(problems[:3])}{more}")
    for key in unneeded:  # else random
        model.state_dict()[key].zero_()
    return model.float()


def read_config(source: Source):
    """The transformers configuration of a checkpoint; ValueError if it is unreadable or needs the checkpoint's code."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.path, trust_remote_code=False, **source.options)
    except Exception as error:  # damaged files raise almost anything
        raise ValueError(f"the configuration of {source.label} cannot be read: {error}") from error


def preprocessor_file(source: Source) -> Path | None:
    """Path of the checkpoint's `preprocessor_config.json`; None if it has none."""
    from transformers.utils import cached_file

    found = cached_file(
        source.path, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False, **source.options
    )
    return Path(found) if found else None


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the loading reports and progress bars of transformers; problems are raised as errors instead."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
