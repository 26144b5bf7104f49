"""Reading, checking and hashing weight files of backbones."""

from __future__ import annotations

import argparse
import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a `.pth` / `.pt` / `.bin` (read with weights_only=True) or `.safetensors` file, on the CPU.

    Nested dictionaries (`{"teacher": {...}, "epoch": 3}`) are flattened with dots; what is not a tensor is dropped.

    Raises: FileNotFoundError, ValueError (not a file of tensors), each naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # plain data; full DINO checkpoints hold one
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged or holds more than tensors, which is not loaded because unpickling can run code; "
            "save the plain state dict with torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # torch and safetensors raise many types on a truncated file
        raise ValueError(f"{path} cannot be read as a weights file: {error}") from error
    tensors = _flatten(content) if isinstance(content, Mapping) else {}
    if not tensors:
        raise ValueError(f"{path} holds no tensors; a state dict is expected")
    return tensors


def _flatten(content: Mapping, prefix: str = "") -> dict[str, Tensor]:
    tensors = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{key}"] = value.detach()
        elif isinstance(value, Mapping):
            tensors.update(_flatten(value, f"{prefix}{key}."))
    return tensors


def load_strictly(module: torch.nn.Module, weights: Mapping[str, Tensor], what: str, source: object) -> None:
    """`module.load_state_dict(weights)` whose error names the file and the first mismatches.

    Args: what: the architecture for the message; source: where the weights came from.
    Raises: ValueError when keys or shapes differ.
    """
    expected = module.state_dict()
    problems = [f"{key} is missing" for key in expected if key not in weights]
    problems += [f"{key} is unknown" for key in weights if key not in expected]
    problems += [
        f"{key} is {list(weights[key].shape)}, not {list(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{source} does not hold {what} weights: {'; '.join(problems[:3])}{more}")
    module.load_state_dict(weights)


def hash_weights(module: torch.nn.Module) -> str:
    """16 hexadecimal digits of sha256 over names, shapes, dtypes and values of a module's state, for cache keys."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
