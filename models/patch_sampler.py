"""Random choice of the patches that enter the contrastive loss (CUT), and the heads that embed patches.

Shapes: B images, C channels, L = H*W positions, P patches, N tapped layers, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from models.layers.precision import full, to_autocast


def random_locations(num_locations: int, num_patches: int, device: torch.device | str) -> Tensor:
    """min(num_patches, num_locations) positions out of `num_locations`, int64, uniform and without repeats.

    The only place where positions are drawn. It stays on the device and has a static shape, so a captured
    graph draws anew at each replay.
    """
    return (
        torch.rand(num_locations, device=device).topk(min(num_patches, num_locations), sorted=False).indices
    )


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
    """A head per tapped layer: Linear(C, D), ReLU, Linear(D, D), unit length; without `mlp` only the last.

    Args:
        channels: C of each tapped layer.
        width: D.
        batched: run the layers together where they have equally many patches. The functions and the
            parameters' names stay.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, mlp: bool = True, batched: bool = False):
        super().__init__()
        self.batched = batched and mlp
        self.heads = [f"mlp_{number}" for number in range(len(channels))] if mlp else []
        for name, c in zip(self.heads, channels, strict=bool(mlp)):
            self.add_module(name, nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width)))

    def forward(self, number: int, patches: Tensor) -> Tensor:
        """Unit vectors (B, P, D) of patches (B, P, C) of tapped layer `number`, never in half precision."""
        if self.heads:
            patches = getattr(self, self.heads[number])(patches)
        return unit_length(patches)

    def of_layers(self, patches: Sequence[Tensor]) -> list[Tensor]:
        """Unit vectors (B, P, D) of the patches (B, P, C) of each tapped layer, in order."""
        if self.batched and len({of_layer.shape[:2] for of_layer in patches}) == 1:
            return list(unit_length(self._embed_together(patches)).unbind())
        return [self(number, of_layer) for number, of_layer in enumerate(patches)]

    def _embed_together(self, patches: Sequence[Tensor]) -> Tensor:
        """The MLPs' outputs (N, B, P, D) of all layers' patches (B, P, C).

        Neighbouring layers of equal C share a product. All parameters are joined and cast at once, and so are
        their gradients. Padding every C to the largest would take as many kernels for the usual five layers:
        fewer products, but zeros to make and gradients of padded weights to copy.
        """
        first, second = ([getattr(self, name)[at] for name in self.heads] for at in (0, 2))
        count, (b, p, _), width = len(patches), patches[0].shape, first[0].out_features
        groups = [list(group) for _, group in groupby(map(to_autocast, patches), lambda x: x.shape[2])]
        sizes = [len(group) * width * group[0].shape[2] for group in groups]
        sizes += [count * width * width, count * width, count * width]
        parameters = [layer.weight for layer in first + second] + [layer.bias for layer in first + second]
        joined = to_autocast(torch.cat([parameter.flatten() for parameter in parameters]))
        *first_weights, second_weight, first_bias, second_bias = joined.split(sizes)
        products = []  # weight times patches, (n, D, B*P) of n layers: gradients have the weights' layout
        for group, weight in zip(groups, first_weights, strict=True):
            x = torch.stack(group) if len(group) > 1 else group[0][None]
            products.append(weight.view(len(group), width, -1) @ x.flatten(1, 2).mT)
        hidden = (torch.cat(products) + first_bias.view(count, width, 1)).relu()
        weight = second_weight.view(count, width, width)
        embedded = torch.baddbmm(second_bias.view(count, width, 1), weight, hidden)  # (N, D, B*P)
        return embedded.mT.unflatten(1, (b, p))


def unit_length(vectors: Tensor) -> Tensor:
    """`vectors` (..., D) divided by their lengths, never in half precision."""
    vectors = full(vectors)
    return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-7)
