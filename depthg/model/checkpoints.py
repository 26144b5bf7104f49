"""Checkpoints: one safetensors file of weights, optimiser states, and a JSON header. Loading runs no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from depthg.storage.safe_text import parse_json
from depthg.storage.whole_files import write_tensors

FILE = "checkpoint.safetensors"


def save_checkpoint(folder: Path, modules: dict[str, torch.nn.Module], optimizers: dict, header: dict) -> Path:
    """Writes ``folder/checkpoint.safetensors``; ``header`` is any JSON value (iteration, shifts, sizes, ...)."""
    tensors = {f"model.{n}.{k}": v for n, module in modules.items() for k, v in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{name}.{index}.{key}": value for key, value in state.items()})
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items() if value.numel()}
    path = folder / FILE
    write_tensors(path, tensors, {"depthg": json.dumps(header)})
    return path


def add_module(folder: Path, name: str, weights: Mapping[str, Tensor], entries: Mapping) -> None:
    """Adds a module's weights, and entries of the header, to ``folder/checkpoint.safetensors``.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint`.
    """
    tensors, header = read_checkpoint(folder)
    tensors |= {f"model.{name}.{key}": value.detach().cpu().contiguous() for key, value in weights.items()}
    write_tensors(folder / FILE, tensors, {"depthg": json.dumps({**header, **entries})})


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """Reads tensors and header of ``folder/checkpoint.safetensors``.

    Raises:
        FileNotFoundError: the folder has no checkpoint.
        ValueError: the file is damaged or was not written by this package.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; was the run stopped before its first one?")
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {})["depthg"])
            if not isinstance(header, dict):
                raise ValueError(f"its header is a {type(header).__name__}")
            return {key: file.get_tensor(key) for key in file.keys()}, header
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or not a depthg checkpoint ({error}); delete it and train again"
        ) from error


def load_modules(tensors: dict[str, Tensor], modules: dict[str, torch.nn.Module], path: Path) -> None:
    """Copies weights into modules.

    Raises:
        ValueError: a weight is missing or has another shape; names it.
    """
    for name, module in modules.items():
        for key, target in module.state_dict().items():
            value = tensors.get(f"model.{name}.{key}")
            if target.numel() == 0:
                continue
            if value is None or value.shape != target.shape:
                found = "is missing" if value is None else f"has shape {tuple(value.shape)}"
                raise ValueError(f"{path}: weight {name}.{key} {found}; this model needs {tuple(target.shape)}")
            target.copy_(value)


def load_optimizers(tensors: dict[str, Tensor], optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Restores optimiser states; the given optimisers keep their hyper-parameters."""
    for name, optimizer in optimizers.items():
        prefix = f"optimizer.{name}."
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(prefix):
                index, entry = key[len(prefix) :].split(".")
                state.setdefault(int(index), {})[entry] = value.clone()
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
