"""DINO's published architecture, written out, with random weights: what our networks are compared with."""

import torch
from torch.nn import functional as F

from depthg.backbones.vit import IMAGENET_MEAN, IMAGENET_STD

WIDTH, LAYERS, PATCH = 128, 2, 8


def dino_state(width=WIDTH, layers=LAYERS, patch=PATCH, side=28):
    """Random weights under DINO's names; LayerNorm and biases random too, so that none can be forgotten."""

    def linear(name, d_out, d_in):
        return {f"{name}.weight": torch.randn(d_out, d_in) * 2 / d_in**0.5, f"{name}.bias": torch.randn(d_out) * 0.3}

    def norm(name):
        return {f"{name}.weight": torch.rand(width) + 0.5, f"{name}.bias": torch.randn(width) * 0.3}

    state = {"cls_token": torch.randn(1, 1, width), "pos_embed": torch.randn(1, 1 + side**2, width)}
    state["patch_embed.proj.weight"] = torch.randn(width, 3, patch, patch) / (3 * patch**2) ** 0.5
    state["patch_embed.proj.bias"] = torch.randn(width) * 0.3
    for i in range(layers):
        block = f"blocks.{i}"
        state |= norm(f"{block}.norm1") | linear(f"{block}.attn.qkv", 3 * width, width)
        state |= linear(f"{block}.attn.proj", width, width) | norm(f"{block}.norm2")
        state |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
    return state | norm("norm")


def dino_oracle(state, images, heads=WIDTH // 64):
    """The published architecture written out in float64: patch features [B, C, h, w] after the last LayerNorm."""
    state = {k: v.double() for k, v in state.items()}
    width = state["cls_token"].shape[-1]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        x = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    x = (images.double() - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    patch = state["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    b, _, h, w = x.shape
    x = torch.cat([state["cls_token"].expand(b, -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + dino_positions(state["pos_embed"], h, w)
    for i in range(len({k.split(".")[1] for k in state if k.startswith("blocks.")})):
        y = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        q, k, v = y.reshape(b, -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        attention = torch.softmax(q @ k.transpose(-2, -1) * (width // heads) ** -0.5, -1)
        x = x + linear((attention @ v).transpose(1, 2).reshape(b, -1, width), f"blocks.{i}.attn.proj")
        y = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
        x = x + linear(y, f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")[:, 1:].transpose(1, 2).reshape(b, width, h, w)


def dino_positions(table, h, w):
    n = int((table.shape[1] - 1) ** 0.5)
    if h == w == n:
        return table
    rows, columns = (cubic_matrix(n, size, n / (size + 0.1)).to(table) for size in (h, w))
    grid = torch.einsum("yi,xj,ijc->yxc", rows, columns, table[0, 1:].reshape(n, n, -1))
    return torch.cat([table[:, :1], grid.reshape(1, h * w, -1)], 1)


def cubic_matrix(n, size, step):
    """Matrix [size, n] of cubic convolution (a = -0.75) at (i + 0.5) * step - 0.5, borders repeated, in plain loops."""
    a, matrix = -0.75, torch.zeros(size, n, dtype=torch.float64)
    for i in range(size):
        position = (i + 0.5) * step - 0.5
        first = int(position // 1)
        for tap in range(first - 1, first + 3):
            d = abs(position - tap)
            near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(tap, 0), n - 1)] += near if d <= 1 else far
    return matrix
