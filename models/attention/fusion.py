"""Fusing attention maps with a generator's input or features (ASGIT, Lin et al.).

A raw map is scaled to [0, 1] per image, resized bilinearly and fused: `FUSIONS` defines how, the stage where.
The supplement compares the stages without saying how features are fused; here it is done as with the image.

| stage | of the ResNet generator | fused with |
|---|---|---|
| F0 | its input (the only stage of a U-Net) | the image |
| F1 | before the first halving | (B, ngf, H, W) |
| F2 | after the second halving | (B, 4 ngf, H/4, W/4) |
| F3 | after the 4th residual block | the same |
| F4 | after the last (9th) residual block | the same |

Legend: images (B, C, H, W), maps (B, 1, h, w) of any size, features (B, C', H', W').
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.generator import ResnetBlock, ResnetGenerator
from models.unet import UnetGenerator
from util.errors import UserError

STAGES = ("F0", "F1", "F2", "F3", "F4")
EPS = 1e-6  # a map whose range is smaller counts as constant


def normalise_map(maps: Tensor) -> Tensor:
    """Raw maps (B, 1, h, w) scaled to [0, 1] by minimum and maximum per image; zeros for a constant map.

    The released code takes minimum and maximum over the whole batch, without an eps; at batch 1 both agree.
    """
    least, largest = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - least) / (largest - least).clamp(min=EPS)


def resize_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, 1, h, w) at the (height, width) `size`, bilinear."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


class Fusion(NamedTuple):
    """One way to fuse attention A in [0, 1] with features x.

    apply: (x, A) -> fused features. extra_nc: channels added. absent: the value of A if no map is given, as
    for reconstructions and identities. unseen: the value of A at test, where the memory has no map.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    extra_nc: int = 0
    absent: float = 1.0
    unseen: float = 1.0


FUSIONS: dict[str, Fusion] = {
    "rmult": Fusion(lambda x, attention: x * (1 + attention), absent=0.0, unseen=0.5),
    "alpha": Fusion(lambda x, attention: torch.cat([x, attention], 1), extra_nc=1),
    "mult": Fusion(lambda x, attention: x * attention),
}


class Guided(nn.Module):
    """Mixin that precedes a generator class, whose state-dict keys it keeps: the fusion and its stage.

    UserError for a stage that the generator does not have.
    """

    def __init__(
        self, input_nc: int = 3, *args, fusion: str = "rmult", stage: str = "F0", **settings
    ) -> None:
        super().__init__(input_nc + FUSIONS[fusion].extra_nc, *args, **settings)
        self.fusion, stages = FUSIONS[fusion], self.stages()
        if stage not in stages:
            raise UserError(f"--attention_stage {stage}: this generator has {', '.join(stages)}")
        self.fused_before = stages[stage]

    def stages(self) -> dict[str, int]:
        """Of each stage, the number of the module in `model` whose input is fused; 0: the image."""
        return {"F0": 0}

    def fuse(self, x: Tensor, attention: Tensor | float | None) -> Tensor:
        """Fuse x (B, C', H', W') with maps (B, 1, h, w), a constant, or `Fusion.absent` (None)."""
        if attention is None:
            attention = self.fusion.absent
        if not isinstance(attention, Tensor):
            attention = torch.full_like(x[:, :1], attention)
        return self.fusion.apply(x, resize_map(attention, x.shape[2:]).to(x.dtype))


class GuidedResnetGenerator(Guided, ResnetGenerator):
    """`ResnetGenerator` with attention. Images (B, input_nc, H, W) in [-1, 1], H and W multiples of 4."""

    def stages(self) -> dict[str, int]:
        blocks = [number for number, module in enumerate(self.model) if isinstance(module, ResnetBlock)]
        # Border, convolution, norm and activation come before the first halving.
        stages = {"F0": 0, "F1": 4, "F2": blocks[0], "F3": blocks[0] + 4, "F4": blocks[-1] + 1}
        if len(blocks) < 4:
            del stages["F3"]
        return stages

    def forward(self, images: Tensor, attention: Tensor | float | None = None) -> Tensor:
        """Translate images. attention: maps (B, 1, h, w) in [0, 1] of any size, a constant, or None."""
        if self.fused_before == 0:
            return super().forward(self.fuse(images, attention))
        x, _ = self.run_layers(self.model, images, (), self.fused_before)
        return self.run_layers(self.model[self.fused_before :], self.fuse(x, attention))[0]


class GuidedUnetGenerator(Guided, UnetGenerator):
    """`UnetGenerator` with attention on its input."""

    def forward(self, images: Tensor, attention: Tensor | float | None = None) -> Tensor:
        """As of `GuidedResnetGenerator`."""
        return super().forward(self.fuse(images, attention))


class GuidedTranslator(nn.Module):
    """The translation at test: attention from the discriminator of the images' own domain (v2), or the
    constant `Fusion.unseen` (v1), because the memory holds training images only.
    """

    def __init__(self, generator: Guided, discriminator: nn.Module | None = None) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.smallest_side = 0 if discriminator is None else discriminator.smallest_side

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] to translations of the same size."""
        return self.generator(images, self.attention(images))

    def attention(self, images: Tensor) -> Tensor | float:
        """Maps (B, 1, h, w) in [0, 1] that guide the translation of images (B, C, H, W), or the constant."""
        if self.discriminator is None:
            return self.generator.fusion.unseen
        return normalise_map(self.discriminator.raw_map(images))

    def attention_picture(self, images: Tensor) -> Tensor:
        """The discriminator's map of images (B, C, H, W): (B, 1, H, W), from -1 (not looked at) to 1."""
        return 2 * resize_map(self.attention(images), images.shape[2:]) - 1
