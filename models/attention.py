"""Where a discriminator looks, and generators guided by it (ASGIT, Lin et al.).

Discriminators: post hoc (PHA) and trainable attention (TAM). Both are the PatchGAN, cut after its last
halving: the first part yields the map, at 1/8 of the image's size, the head yields the scores.

Generators: a raw map is scaled to [0, 1] per image, resized bilinearly and fused: `FUSIONS` defines how, the
stage where (`stages`). The supplement does not say how features are fused; here as the image is.

Legend: images (B, C, H, W), maps (B, 1, h, w) of any size, features (B, C', H', W').
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.discriminator import NLayerDiscriminator, check_sides
from models.generator import ResnetBlock, ResnetGenerator, UnetGenerator
from models.layers import BlurDownsample, full, run_layers
from util.errors import UserError

# ---- discriminators ----

HALVINGS = 3
HEAD = 4  # modules behind the last halving: convolution, norm, activation, convolution


class AttendingDiscriminator(nn.Module):
    """A PatchGAN that says where it looks.

    A subclass has split(layers, ndf), which keeps the PatchGAN's layers under the released names; attend(x),
    the scores (B, 1, h', w') of images and the raw map (B, 1, H // 8, W // 8), not detached; and raw_map(x).
    """

    run_layers = staticmethod(run_layers)
    smallest_side = 3 * 2**HALVINGS

    def __init__(self, input_nc: int = 3, ndf: int = 64, norm: str = "instance", antialias: bool = False):
        super().__init__()
        self.split(NLayerDiscriminator(input_nc, ndf, HALVINGS, norm, antialias).model, ndf)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)[0]

    def _run(self, layers: nn.Sequential, x: Tensor) -> Tensor:
        return self.run_layers(layers, x)[0]


class PostHocAttention(AttendingDiscriminator):
    """PHA: the map is the mean absolute activation over channels after the third halving."""

    def split(self, layers: nn.Sequential, ndf: int) -> None:
        self.model_p1, self.model_p2 = nn.Sequential(*layers[:-HEAD]), nn.Sequential(*layers[-HEAD:])

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self._features(x)
        return self._run(self.model_p2, features), _channel_mean(features.abs())

    def raw_map(self, x: Tensor) -> Tensor:
        return _channel_mean(self._features(x).abs())

    def _features(self, x: Tensor) -> Tensor:
        check_sides(x, self.smallest_side)
        return self._run(self.model_p1, x)  # (B, 4 ndf, H // 8, W // 8)


class TrainableAttention(AttendingDiscriminator):
    """TAM: a mask branch beside the trunk; the head judges (1 + mask) * trunk, so D's own loss trains it.

    The map is the mean of mask - 1/2 over channels: near 1/2, float32 would round it off. As in the released
    code the trunk has two convolutions, of which the supplement's text names three.
    """

    def split(self, layers: nn.Sequential, ndf: int) -> None:
        first = 2 + isinstance(layers[2], BlurDownsample)  # convolution, activation, blur
        self.fe = nn.Sequential(*layers[:first])
        self.trunk_brunch = nn.Sequential(*layers[first:-HEAD])
        self.fin_phase = nn.Sequential(*layers[-HEAD:])
        self.mask_brunch = MaskBranch(ndf)

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self._features_and_logits(x)
        trunk = self._run(self.trunk_brunch, features)  # (B, 4 ndf, H // 8, W // 8)
        return self._run(self.fin_phase, (1 + logits.sigmoid()) * trunk), _mean_less_half(logits)

    def raw_map(self, x: Tensor) -> Tensor:
        return _mean_less_half(self._features_and_logits(x)[1])

    def _features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_sides(x, self.smallest_side)
        features = self._run(self.fe, x)  # (B, ndf, H // 2, W // 2)
        return features, self.mask_brunch(features, [side // 2**HALVINGS for side in x.shape[2:]])


class MaskBranch(nn.Module):
    """TAM's mask before the sigmoid, with batch norms: (B, ndf, H/2, W/2) -> (B, 4 ndf, *size)."""

    def __init__(self, ndf: int) -> None:
        super().__init__()
        channels = 4 * ndf

        def conv(c_in: int, c_out: int, size: int = 3) -> nn.Conv2d:
            return nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)

        self.d1, self.d2, self.skip2 = conv(ndf, ndf), conv(ndf, ndf), conv(ndf, ndf)
        self.mid = nn.Sequential(conv(ndf, ndf), nn.ReLU(), conv(ndf, ndf), nn.ReLU())
        self.u2 = conv(ndf, channels)
        self.u1 = conv(channels, channels)  # unused, but released checkpoints carry it
        convs = conv(channels, channels, 1), conv(channels, channels, 1)
        norms = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.last = nn.Sequential(norms[0], nn.ReLU(), convs[0], norms[1], convs[1], nn.Sigmoid())

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        for down in (self.d1, self.d2):
            x = F.relu(down(F.max_pool2d(x, 3, stride=2, padding=1)))
        x = F.relu(self.skip2(x)) + self.mid(x)
        # Pooling rounds odd sizes up, the trunk's convolutions round them down. Identity for equal sizes.
        x = self.u2(F.interpolate(x, size, mode="bilinear", align_corners=False))
        # In float32: fresh weights give logits so close to 0 that bfloat16 would leave only rounding.
        with torch.autocast(x.device.type, enabled=False):
            return self.last[:-1](full(x))


def _channel_mean(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 1, h, w), at least float32: min-max would amplify bfloat16 rounding."""
    return features.mean(1, keepdim=True, dtype=torch.promote_types(features.dtype, torch.float32))


def _mean_less_half(logits: Tensor) -> Tensor:
    """Mean of sigmoid(logits) - 1/2 over channels, exact near 0: (B, C, h, w) -> (B, 1, h, w)."""
    return _channel_mean((logits / 2).tanh() / 2)


# ---- generators ----

STAGES = ("F0", "F1", "F2", "F3", "F4")
EPS = 1e-6  # a map whose range is smaller counts as constant


def normalise_map(maps: Tensor) -> Tensor:
    """Raw maps (B, 1, h, w) scaled to [0, 1] per image (released: per batch); zeros for a constant map."""
    least, largest = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - least) / (largest - least).clamp(min=EPS)


def resize_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, 1, h, w) at the (height, width) `size`, bilinear."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


class Fusion(NamedTuple):
    """One way to fuse attention A in [0, 1] with features x."""

    apply: Callable[[Tensor, Tensor], Tensor]  # (x, A) -> fused features
    extra_nc: int = 0  # channels added
    absent: float = 1.0  # A where no map is given, as for reconstructions and identities
    unseen: float = 1.0  # A at test, where the memory has no map


FUSIONS: dict[str, Fusion] = {
    "rmult": Fusion(lambda x, attention: x * (1 + attention), absent=0.0, unseen=0.5),
    "alpha": Fusion(lambda x, attention: torch.cat([x, attention], 1), extra_nc=1),
    "mult": Fusion(lambda x, attention: x * attention),
}


class Guided(nn.Module):
    """Precedes a generator class, whose state-dict keys it keeps."""

    def __init__(self, input_nc: int = 3, *args, fusion: str = "rmult", stage: str = "F0", **settings):
        super().__init__(input_nc + FUSIONS[fusion].extra_nc, *args, **settings)
        self.fusion, stages = FUSIONS[fusion], self.stages()
        if stage not in stages:
            raise UserError(f"--attention_stage {stage}: this generator has {', '.join(stages)}")
        self.fused_before = stages[stage]

    def stages(self) -> dict[str, int]:
        """Of each stage, the number of the module in `model` whose input is fused; 0: the image."""
        return {"F0": 0}

    def fuse(self, x: Tensor, attention: Tensor | float | None) -> Tensor:
        """Fuse features x with maps, a constant, or `Fusion.absent` (None)."""
        if attention is None:
            attention = self.fusion.absent
        if not isinstance(attention, Tensor):
            attention = torch.full_like(x[:, :1], attention)
        return self.fusion.apply(x, resize_map(attention, x.shape[2:]).to(x.dtype))

    def forward(self, images: Tensor, attention: Tensor | float | None = None) -> Tensor:
        return super().forward(self.fuse(images, attention))


class GuidedResnetGenerator(Guided, ResnetGenerator):
    def stages(self) -> dict[str, int]:
        """F1 is before the first halving, F2 after the second, F3 after the 4th block, F4 after the last."""
        blocks = [number for number, module in enumerate(self.model) if isinstance(module, ResnetBlock)]
        stages = {"F0": 0, "F1": 4, "F2": blocks[0], "F3": blocks[0] + 4, "F4": blocks[-1] + 1}
        if len(blocks) < 4:
            del stages["F3"]
        return stages

    def forward(self, images: Tensor, attention: Tensor | float | None = None) -> Tensor:
        if self.fused_before == 0:
            return super().forward(images, attention)
        x, _ = self.run_layers(self.model, images, (), self.fused_before)
        return self.run_layers(self.model[self.fused_before :], self.fuse(x, attention))[0]


class GuidedUnetGenerator(Guided, UnetGenerator):
    """`UnetGenerator` with attention on its input."""


class GuidedTranslator(nn.Module):
    """The translation at test, by maps of the discriminator of the images' domain, or by `Fusion.unseen`."""

    def __init__(self, generator: Guided, discriminator: AttendingDiscriminator | None = None) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.smallest_side = 0 if discriminator is None else discriminator.smallest_side

    def forward(self, images: Tensor) -> Tensor:
        return self.generator(images, self.attention(images))

    def attention(self, images: Tensor) -> Tensor | float:
        if self.discriminator is None:
            return self.generator.fusion.unseen
        return normalise_map(self.discriminator.raw_map(images))

    def attention_picture(self, images: Tensor) -> Tensor:
        """The discriminator's map of images (B, C, H, W): (B, 1, H, W), from -1 (not looked at) to 1."""
        return 2 * resize_map(self.attention(images), images.shape[2:]) - 1
