"""Reading, checking and hashing weight files of backbones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from depthg.foreign.torch_file import read_torch_file, tensors_of


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a `.pth` / `.pt` / `.bin` or `.safetensors` file, on the CPU.

    No code of the file is run. Nested dictionaries (`{"teacher": {...}, "epoch": 3}`) are flattened with dots; values
    other than tensors are dropped.

    Raises: FileNotFoundError, ValueError (not a file of tensors), each naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else read_torch_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a weights file: {error}") from error
    tensors = tensors_of(content)
    if not tensors:
        raise ValueError(f"{path} holds no tensors; save the model with torch.save(model.state_dict(), path)")
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
