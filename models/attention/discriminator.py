"""Discriminators with attention maps (ASGIT, Lin et al.): post hoc (PHA) and trainable (TAM).

Both are the PatchGAN of models/discriminator.py, cut after its last halving: the first part yields the map,
at 1/8 of the image's size, and the head yields the scores. Legend: images (B, C, H, W), maps (B, 1, h, w).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.discriminator import NLayerDiscriminator, check_sides
from models.layers import full, run_layers

HALVINGS = 3
HEAD = 4  # modules behind the last halving: convolution, norm, activation, convolution
SMALLEST_SIDE = 3 * 2**HALVINGS


class PostHocAttention(nn.Module):
    """PHA: a PatchGAN whose attention is the mean absolute activation over channels after its third halving.

    No parameter is added, so the map describes what the scores are computed from.
    """

    run_layers = staticmethod(run_layers)
    smallest_side = SMALLEST_SIDE

    def __init__(
        self, input_nc: int = 3, ndf: int = 64, norm: str = "instance", antialias: bool = False
    ) -> None:
        super().__init__()
        layers = NLayerDiscriminator(input_nc, ndf, HALVINGS, norm, antialias).model
        self.model_p1, self.model_p2 = nn.Sequential(*layers[:-HEAD]), nn.Sequential(*layers[-HEAD:])

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, 1, h', w') of images (B, input_nc, H, W). UserError for a side below `smallest_side`."""
        return self.run_layers(self.model_p2, self._features(x))[0]

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scores and, from the same pass, the raw map (B, 1, H // 8, W // 8) >= 0, not detached."""
        features = self._features(x)
        return self.run_layers(self.model_p2, features)[0], _channel_mean(features.abs())

    def raw_map(self, x: Tensor) -> Tensor:
        """The raw map alone, without the head's pass."""
        return _channel_mean(self._features(x).abs())

    def _features(self, x: Tensor) -> Tensor:
        check_sides(x, self.smallest_side)
        return self.run_layers(self.model_p1, x)[0]  # (B, 4 ndf, H // 8, W // 8)


class MaskBranch(nn.Module):
    """TAM's mask before the sigmoid: (B, ndf, H/2, W/2), trunk size (h, w) -> (B, 4 ndf, h, w).

    Its norms are always batch norms: each forward pass in training mode updates their running statistics.
    """

    def __init__(self, ndf: int) -> None:
        super().__init__()
        channels = 4 * ndf

        def conv(c_in: int, c_out: int, size: int = 3) -> nn.Conv2d:
            return nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)

        self.d1, self.d2, self.skip2 = conv(ndf, ndf), conv(ndf, ndf), conv(ndf, ndf)
        self.mid = nn.Sequential(conv(ndf, ndf), nn.ReLU(), conv(ndf, ndf), nn.ReLU())
        self.u2 = conv(ndf, channels)
        self.u1 = conv(channels, channels)  # unused, but released checkpoints carry it
        self.last = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            conv(channels, channels, 1),
            nn.BatchNorm2d(channels),
            conv(channels, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        for down in (self.d1, self.d2):
            x = F.relu(down(F.max_pool2d(x, 3, stride=2, padding=1)))
        x = F.relu(self.skip2(x)) + self.mid(x)
        # Pooling rounds odd sizes up, the trunk's convolutions round them down. Identity for equal sizes.
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        x = self.u2(x)
        # In float32: fresh weights give logits so close to 0 that bfloat16 would leave only rounding.
        with torch.autocast(x.device.type, enabled=False):
            return self.last[:-1](full(x))


class TrainableAttention(nn.Module):
    """TAM: a mask branch beside the trunk of a PatchGAN; the head judges (1 + mask) * trunk.

    The attention is the mask's mean over channels. The discriminator's own loss trains it. As in the
    released code the trunk has two convolutions, of which the supplement's text names three. `norm` is that
    of trunk and head.
    """

    run_layers = staticmethod(run_layers)
    smallest_side = SMALLEST_SIDE

    def __init__(
        self, input_nc: int = 3, ndf: int = 64, norm: str = "instance", antialias: bool = False
    ) -> None:
        super().__init__()
        layers = NLayerDiscriminator(input_nc, ndf, HALVINGS, norm, antialias).model
        first = 3 if antialias else 2  # convolution, activation, blur
        # The names are the released ones, spelling included.
        self.fe = nn.Sequential(*layers[:first])
        self.trunk_brunch = nn.Sequential(*layers[first:-HEAD])
        self.fin_phase = nn.Sequential(*layers[-HEAD:])
        self.mask_brunch = MaskBranch(ndf)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, 1, h', w') of images (B, input_nc, H, W). UserError for a side below `smallest_side`."""
        return self._score_and_logits(x)[0]

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scores and, from the same pass, the raw map (B, 1, H // 8, W // 8), not detached.

        The mean of mask - 1/2 over channels, in (-1/2, 1/2): near 1/2, float32 would round it off.
        """
        score, logits = self._score_and_logits(x)
        return score, _mean_less_half(logits)

    def raw_map(self, x: Tensor) -> Tensor:
        """The raw map alone, without trunk and head. The mask's running statistics move as in `attend`."""
        features = self._features(x)
        height, width = x.shape[2:]
        return _mean_less_half(self.mask_brunch(features, (height // 2**HALVINGS, width // 2**HALVINGS)))

    def _features(self, x: Tensor) -> Tensor:
        check_sides(x, self.smallest_side)
        return self.run_layers(self.fe, x)[0]  # (B, ndf, H // 2, W // 2)

    def _score_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self._features(x)
        trunk = self.run_layers(self.trunk_brunch, features)[0]  # (B, 4 ndf, H // 8, W // 8)
        logits = self.mask_brunch(features, trunk.shape[2:])
        return self.run_layers(self.fin_phase, (1 + logits.sigmoid()) * trunk)[0], logits


def _channel_mean(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 1, h, w), at least float32: min-max would amplify bfloat16 rounding."""
    return features.mean(1, keepdim=True, dtype=torch.promote_types(features.dtype, torch.float32))


def _mean_less_half(logits: Tensor) -> Tensor:
    """Mean of sigmoid(logits) - 1/2 over channels, exact near 0: (B, C, h, w) -> (B, 1, h, w)."""
    return _channel_mean((logits / 2).tanh() / 2)
