"""pix2pix: paired translation with a conditional discriminator (Isola et al., CVPR 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import build
from models.layers import full
from models.one_sided import OneSidedModel
from util.arguments import real_number


class Pix2PixModel(OneSidedModel):
    """G translates a of A to its counterpart b of B; D judges pairs (a, b), joined along channels.

    G's loss is (eq. 4)

        lambda_GAN GAN(D, (a, G(a))) + lambda_L1 |G(a) - b|

    D's is half the sum of its terms for the pairs (a, b) and (a, G(a)).
    """

    network_names = ("G", "D")
    groups = {"D": ("D",), "G": ("G",)}
    headline = ("G", "G_L1")
    defaults = {
        "eval": False,  # as the paper translates: with dropout, normalised by each image's own statistics
        "dataset_mode": "aligned",
        "netG": "unet_128",
        "normG": "batch",
        "normD": "batch",
        "no_dropout": False,
        "no_antialias": True,
        "no_antialias_up": True,
        "init_type": "normal",
        "gan_mode": "vanilla",
        "crop_late": True,
        "load_size": 143,
        "crop_size": 128,
        "n_epochs": 100,
        "n_epochs_decay": 100,
    }

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        add("--lambda_L1", 100.0, "weight of the distance from the paired image", type=real_number(0))

    def build_network(self, name: str) -> nn.Module:
        if name == "G":
            return build.build_generator(self.opt)
        return build.build_discriminator(self.opt, self.opt.input_nc + self.opt.output_nc)

    @property
    def loss_names(self) -> list[str]:
        return ["G_GAN", "G_L1", "D_real", "D_fake", "G"]

    def training_step(self) -> None:
        """Forward, D's update, G's update."""
        real_A, real_B = self.batch["A"], self.batch["B"]
        with self.autocast():
            fake_B = self.generate(real_A)
        fake_pair = torch.cat([real_A, full(fake_B)], 1)  # (B, input_nc + output_nc, H, W)
        self.freeze("D", False)
        self.losses["G_GAN"] = self.step_D(torch.cat([real_A, real_B], 1), fake_pair)
        self.losses["G_L1"] = self.opt.lambda_L1 * F.l1_loss(full(fake_B), real_B)
        self.losses["G"] = self.losses["G_GAN"] + self.losses["G_L1"]
        self.update("G", self.losses["G"], ["G_GAN", "G_L1", "G"])
        self.results = {"fake_B": fake_B.detach()}

    def generate(self, images: Tensor) -> Tensor:
        """The translations of images (B, input_nc, H, W)."""
        return self.netG(images)
