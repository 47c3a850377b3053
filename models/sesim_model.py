"""FSeSim and LSeSim (Zheng, Cham and Cai, CVPR 2021): a translation keeps the self-similarity of its source.

G learns from D and from the spatially-correlative loss (`models/spatial_correlation.py`) between an image and
its translation, on features of VGG-16. With `--learned_attn` (LSeSim) these features first pass through F,
1 x 1 convolutions that learn by contrast: the map of an image should be closer to those of its translation
and of the image in other colours than to those of another image.

A step takes each image through VGG-16 once. The gradient passes through VGG-16 for the translation alone.
Terms of the released code whose weight is 0 unless asked for are left out: identity (of pixels and of
self-similarity), perceptual and style distances, a gradient penalty of D.
"""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from data.transforms import draw_jitter, jitter
from models import patch_sampler
from models.layers import initialise
from models.one_sided import OneSidedModel
from models.spatial_correlation import (
    LEAST_MAP,
    MIN_WINDOW,
    MODES,
    SelfSimilarity,
    contrastive_loss,
    correlation_loss,
)
from models.vgg import LAST_LAYER, LAYERS, RANDOM, VGG16, load_vgg16, up_to
from util import distributed
from util.arguments import integer, layer_list, real_number
from util.device import get_device
from util.errors import UserError

WINDOW, LEARNED_WINDOW = 64, 32  # --patch_size of FSeSim and of LSeSim


class SeSimModel(OneSidedModel):
    """`--model sesim`: G translates A to B, D judges B, F makes self-similarity maps of VGG's features.

    F has parameters with `--learned_attn` only. `vgg` is fixed.
    """

    network_names = ("G", "D", "F")
    groups = {"F": ("F",), "D": ("D",), "G": ("G",)}
    headline = ("G", "G_s")
    defaults = {"lr": 0.0001, "pool_size": 50, "crop_late": True}

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        learned = {"learned_attn": (True,)}
        add("--lambda_spatial", 10.0, "weight of the spatially-correlative loss", type=real_number(0))
        add(
            "--vgg_weights",
            None,
            f"torchvision's file vgg16-397923af.pth; {RANDOM}: random weights, for tests",
        )
        add("--attn_layers", list(LAYERS), "ReLUs of VGG-16 compared, from 0", type=layer_list, scope="fixed")
        add("--patch_nums", 256, "queries per image and layer; 0: all positions", type=integer(-1))
        add(
            "--patch_size",
            None,
            "side of the window of keys, in positions",
            type=integer(MIN_WINDOW),
            shown=f"{WINDOW}, or {LEARNED_WINDOW} with --learned_attn",
        )
        add("--loss_mode", "cos", "how self-similarity maps are compared", choices=MODES)
        add("--use_norm", False, "compare directions of features instead of inner products")
        add("--learned_attn", False, "LSeSim: learned convolutions on the features", scope="fixed")
        add("--augment", True, "contrast views in other colours too", only=learned)
        add("--T", 0.07, "temperature of that contrast", type=real_number(0, above=True), only=learned)

    @classmethod
    def check(cls, opt: Namespace) -> None:
        if (opt.input_nc, opt.output_nc) != (3, 3):
            raise UserError("--model sesim needs --input_nc 3 and --output_nc 3: VGG-16 takes RGB images")
        if opt.attn_layers[-1] > LAST_LAYER:
            raise UserError(f"--attn_layers {opt.attn_layers[-1]}: VGG-16 has ReLUs 0 to {LAST_LAYER}")
        if opt.patch_size is None:
            opt.patch_size = LEARNED_WINDOW if opt.learned_attn else WINDOW
        if opt.vgg_weights != RANDOM:
            VGG16.find(opt.vgg_weights)

    @classmethod
    def size_limits(cls, opt: Namespace) -> tuple[int, int]:
        """Also what `--attn_layers` need: the deepest must have a map to compare."""
        multiple, smallest = super().size_limits(opt)
        halvings = up_to(opt.attn_layers[-1]).count("M")
        return multiple, max(smallest, LEAST_MAP * 2**halvings)

    def __init__(self, opt: Namespace):
        self.augments = opt.isTrain and opt.learned_attn and opt.augment
        if opt.isTrain:
            self.vgg = load_vgg16(opt.vgg_weights, opt.attn_layers, get_device(opt.gpu_ids))
        super().__init__(opt)
        if opt.isTrain and opt.channels_last:
            self.vgg.to(memory_format=torch.channels_last)

    def build_network(self, name: str) -> nn.Module:
        if name != "F":
            return super().build_network(name)
        opt = self.opt
        channels = self.vgg.channels if opt.learned_attn else ()
        return initialise(SelfSimilarity(channels, opt.patch_size, opt.use_norm), "normal", 0.02)

    @property
    def loss_names(self) -> list[str]:
        return ["G_GAN", "G_s", "D_real", "D_fake", "D_A", "G"] + ["spatial"] * self.opt.learned_attn

    def set_input(self, batch: dict) -> None:
        """Also adds the views "A_aug" and "B_aug" where they are needed and the batch has none."""
        super().set_input(batch)
        if self.augments and "A_aug" not in self.batch:
            self.make_views()

    def make_views(self) -> None:
        """Add a view of each image in other colours to the batch.

        Colours are drawn from torch's generator on the host, which a resume restores. All processes draw
        those of the whole global batch, and each takes its part, so that several processes train as one.
        """
        generator = random.Random(int(torch.randint(2**62, ())))
        for domain in "AB":
            images = self.batch[domain]
            count, rank = len(images), distributed.rank()
            changes = [draw_jitter(generator) for _ in range(count * distributed.world_size())]
            views = jitter(images, changes[rank * count : (rank + 1) * count])
            self.batch[f"{domain}_aug"] = self.place(views)

    def training_step(self) -> None:
        """Forward, F's update (LSeSim), D's update, G's update."""
        with self.autocast():
            fake = self.netG(self.batch["A"])
            fake_features = self.vgg(fake)
            real_features = self.encode_real()
        if self.opt.learned_attn:
            self.step_F(fake_features, real_features)
        loss_GAN = self.step_D(self.batch["B"], fake)
        self.step_G(loss_GAN, fake_features, real_features["A"])
        self.results = {"fake_B": fake.detach()}

    @torch.no_grad()
    def encode_real(self) -> dict[str, list[Tensor]]:
        """VGG's features of the images that need no gradient, in one pass; B is turned by 180 degrees."""
        images = {"A": self.batch["A"]}
        if self.opt.learned_attn:
            images["B"] = self.batch["B"].rot90(2, (2, 3))
        if self.augments:
            images["A_aug"] = self.batch["A_aug"]
            images["B_aug"] = self.batch["B_aug"].rot90(2, (2, 3))
        layers = [features.chunk(len(images)) for features in self.vgg(torch.cat(list(images.values())))]
        return dict(zip(images, map(list, zip(*layers, strict=True)), strict=True))

    def step_F(self, fake_features: list[Tensor], real: dict[str, list[Tensor]]) -> None:
        """Update F: maps of A belong to those of its translation and of its view, not to those of B."""
        sources, targets, others = real["A"], [features.detach() for features in fake_features], real["B"]
        if self.augments:
            sources = _stacked(sources, real["A"])
            targets, others = _stacked(targets, real["A_aug"]), _stacked(others, real["B_aug"])
        with self.autocast():
            contrast = partial(contrastive_loss, temperature=self.opt.T)
            self.losses["spatial"] = self.mean_of_layers(contrast, sources, targets, others)
        self.update("F", self.losses["spatial"], ["spatial"])

    def compute_D_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """As CUT's, also kept as "D_A"."""
        self.losses["D_A"] = super().compute_D_loss(real, fake)
        return self.losses["D_A"]

    def step_G(self, loss_GAN: Tensor, fake_features: list[Tensor], real_features: list[Tensor]) -> None:
        """Update G by lambda_GAN * GAN(G(x)) + lambda_spatial * S(x, G(x)); F and D are frozen."""
        self.freeze("F")
        with self.autocast():  # its own context: F's old weights are cached as casts in the one before
            distance = partial(correlation_loss, mode=self.opt.loss_mode, use_norm=self.opt.use_norm)
            loss = self.mean_of_layers(distance, real_features, fake_features)
            self.losses["G_s"] = self.opt.lambda_spatial * loss
        self.losses["G_GAN"] = loss_GAN
        self.losses["G"] = self.losses["G_GAN"] + self.losses["G_s"]
        self.update("G", self.losses["G"], ["G_GAN", "G_s", "G"])
        self.freeze("F", False)
        self.freeze("D", False)

    def mean_of_layers(self, loss: Callable[..., Tensor], *sides: list[Tensor]) -> Tensor:
        """The mean over layers of a loss of self-similarity maps.

        Each of `sides` has the features (B, C, H, W) of each layer; all share a layer's random queries.
        """
        losses, count = [], self.opt.patch_nums
        for number, layer in enumerate(zip(*sides, strict=True)):
            positions, queries = layer[0][0, 0].numel(), None
            if count > 0:
                queries = patch_sampler.random_locations(positions, count, self.device)
            losses.append(loss(*(self.networks["F"](number, features, queries) for features in layer)))
        return torch.stack(losses).mean()


def _stacked(one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    """Features of two batches, layer by layer, as those of one batch."""
    return [torch.cat(layers) for layers in zip(one, other, strict=True)]
