"""The vision transformer of DINO (Caron et al., ICCV 2021) and the keys of its last layer.

The weights are the official ViT-B/8, from a file that the user names. Nothing is downloaded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.errors import UserError
from util.metrics.features import fill_network, read_state_dict, sha256

DINO_URL = "https://dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth"
LABEL = "DINO's ViT-B/8"
SIDE = 224  # pixels, of the images that the position embedding belongs to
ROOM = 0.1  # patches; DINO adds it to the grid's sides before it scales the position embedding


class Attention(nn.Module):
    """Multi-head self-attention: tokens (B, T, D) to (B, T, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        b, t, d = tokens.shape
        qkv = self.qkv(tokens).view(b, t, 3, self.heads, d // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, T, D / heads) each
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.proj(mixed.transpose(1, 2).reshape(b, t, d))

    def keys(self, tokens: Tensor) -> Tensor:
        """The keys of all heads side by side: (B, T, D)."""
        _, weight, _ = self.qkv.weight.chunk(3)
        _, bias, _ = self.qkv.bias.chunk(3)
        return F.linear(tokens, weight, bias)


class Block(nn.Module):
    """One layer: attention, then a two-layer perceptron, each on normalised tokens and added to them."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        fc1, fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, gelu=nn.GELU(), fc2=fc2))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class VisionTransformer(nn.Module):
    """A ViT with DINO's state-dict keys; the defaults are ViT-B/8.

    Args:
        width: D, of a token. depth: layers. heads: of each attention.
        patch: side of a patch, pixels.
        side: of the images that the position embedding belongs to, pixels; others are possible.
    """

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12, patch: int = 8, side: int = SIDE):
        super().__init__()
        self.patch, self.grid = patch, side // patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        projection = nn.Conv2d(3, width, patch, stride=patch)
        self.patch_embed = nn.Sequential(OrderedDict(proj=projection))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """The last layer's tokens of images (B, 3, H, W), normalised: (B, 1 + patches, D)."""
        tokens = self._embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def keys(self, images: Tensor) -> Tensor:
        """The keys of the last attention, heads side by side: (B, 1 + patches, D), the class token first."""
        tokens = self._embed(images)
        *before, last = self.blocks
        for block in before:
            tokens = block(tokens)
        return last.attn.keys(last.norm1(tokens))

    def _embed(self, images: Tensor) -> Tensor:
        """Class token and patches with their positions; pixels beyond the last whole patch are cut off."""
        patches = self.patch_embed(images)  # (B, D, h, w)
        positions = self._positions(*patches.shape[2:])
        tokens = torch.cat(
            [self.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], 1
        )
        return tokens + positions

    def _positions(self, height: int, width: int) -> Tensor:
        """The position embedding of height x width patches, bicubic: (1, 1 + height * width, D)."""
        if height == width == self.grid:
            return self.pos_embed
        own, grid = self.pos_embed.split([1, self.grid**2], 1)
        grid = grid.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (1, D, grid, grid)
        scale = ((height + ROOM) / self.grid, (width + ROOM) / self.grid)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")  # (1, D, height, width)
        return torch.cat([own, grid.flatten(2).transpose(1, 2)], 1)


@dataclass(frozen=True, eq=False)
class DinoNetwork:
    """A DINO transformer ready for use, and what a receipt says of it."""

    module: VisionTransformer
    record: dict[str, str] = field(repr=False)  # file, sha256


def load_dino(weights: str | Path | None, device: torch.device | str = "cpu") -> DinoNetwork:
    """DINO's ViT-B/8 from the official file dino_vitbase8_pretrain.pth, frozen, in evaluation mode.

    Raises `UserError` for a missing file, a file without a state dict, and other weights. Nothing in the file
    is executed.
    """
    state = read_state_dict(weights, "--dino_weights", LABEL, DINO_URL)
    with torch.device("meta"):
        network = VisionTransformer()
    wanted = transformer_of({key: value.shape for key, value in network.state_dict().items()})
    found = transformer_of({key: value.shape for key, value in state.items()})
    if found is not None and found != wanted:
        raise UserError(
            f"--dino_weights: {weights} holds a vision transformer of {found}, but {LABEL} has {wanted}. "
            f"Fetch {DINO_URL}"
        )
    network.to_empty(device="cpu")
    fill_network(network, state, weights, LABEL, DINO_URL)
    record = {"weights": Path(weights).name, "sha256": sha256(weights)}
    return DinoNetwork(network.eval().requires_grad_(False).to(device), record)


def transformer_of(shapes: Mapping[str, torch.Size]) -> str | None:
    """Width, depth and patch size of the vision transformer with these parameters; None for others."""
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= shapes.keys():
        return None
    depth = sum(key.startswith("blocks.") and key.endswith(".attn.qkv.weight") for key in shapes)
    width, patch = shapes["cls_token"][-1], shapes["patch_embed.proj.weight"][-1]
    return f"width {width}, depth {depth}, patches of {patch} x {patch} pixels"
