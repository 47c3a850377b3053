"""Random choice of the patches that enter the contrastive loss (CUT), and the heads that embed patches.

Shapes: B images, C channels, L = H*W positions, P patches, D embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import full


def random_locations(num_locations: int, num_patches: int, device: torch.device | str) -> Tensor:
    """min(num_patches, num_locations) of `num_locations` positions, int64, uniform, without repeats."""
    count = min(num_patches, num_locations)
    return torch.rand(num_locations, device=device).topk(count, sorted=False).indices


@dataclass
class PatchSelection:
    """Positions chosen in each image: `indices` (B, P)."""

    indices: Tensor

    def route(self, features: Tensor) -> Tensor:
        """The features (B, C, H, W) at the chosen positions: (B, P, C)."""
        c = features.shape[1]
        if features.is_contiguous():
            indices = self.indices[:, None, :].expand(-1, c, -1)  # (B, C, P)
            return features.flatten(2).gather(2, indices).transpose(1, 2)
        # taken as rows, so that the gradient is channels-last as the features are
        vectors = features.permute(0, 2, 3, 1).flatten(1, 2)  # (B, L, C)
        return vectors.gather(1, self.indices[:, :, None].expand(-1, -1, c))


class PatchHeads(nn.Module):
    """A head per tapped layer of C channels: Linear(C, D), ReLU, Linear(D, D), unit length.

    `channels` are C of each layer, `width` is D. Without `mlp` only unit length.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, mlp: bool = True):
        super().__init__()
        self.heads = [f"mlp_{number}" for number in range(len(channels))] if mlp else []
        for name, c in zip(self.heads, channels, strict=bool(mlp)):
            self.add_module(name, nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width)))

    def forward(self, number: int, patches: Tensor) -> Tensor:
        """Unit vectors (B, P, D) of patches (B, P, C) of tapped layer `number`, never in half precision."""
        if self.heads:
            patches = getattr(self, self.heads[number])(patches)
        vectors = full(patches)
        return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-7)
