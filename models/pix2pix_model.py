"""pix2pix: paired translation with a conditional discriminator (Isola et al., CVPR 2017)."""

from __future__ import annotations

from argparse import Namespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import build
from models.base_model import BaseModel
from models.gan_loss import GAN_LOSSES, gradient_penalty
from models.layers.precision import full
from models.training.image_pool import ImagePool
from util.arguments import real_number


class Pix2PixModel(BaseModel):
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
        "load_size": 143,
        "crop_size": 128,
        "n_epochs": 100,
        "n_epochs_decay": 100,
    }

    @classmethod
    def add_options(cls, add) -> None:
        add("--lambda_GAN", 1.0, "weight of the adversarial loss", type=real_number(0))
        add("--lambda_L1", 100.0, "weight of the distance from the paired image", type=real_number(0))

    @classmethod
    def differentiated_twice(cls, opt: Namespace) -> tuple[str, ...]:
        return ("D",) if opt.gan_mode == "wgangp" else ()

    def __init__(self, opt: Namespace):
        super().__init__(opt)
        if opt.isTrain:
            self.gan_loss = GAN_LOSSES[opt.gan_mode]

    def build_network(self, name: str) -> nn.Module:
        if name == "G":
            return build.build_generator(self.opt)
        return build.build_discriminator(self.opt, self.opt.input_nc + self.opt.output_nc)

    def build_memories(self) -> dict[str, nn.Module]:
        self.pool = ImagePool(self.opt.pool_size)
        return {"pool": self.pool} if self.opt.pool_size else {}

    @property
    def loss_names(self) -> list[str]:
        return ["G_GAN", "G_L1", "D_real", "D_fake", "G"]

    @property
    def visual_names(self) -> list[str]:
        return ["real_A", "fake_B", "real_B"]

    def training_step(self) -> None:
        """Forward, D's update, G's update."""
        real_A, real_B = self.batch["A"], self.batch["B"]
        with self.autocast():
            fake_B = self.generate(real_A)
        fake_pair = torch.cat([real_A, full(fake_B)], 1)  # (B, input_nc + output_nc, H, W)
        self.freeze("D", False)
        with self.autocast():
            loss_D = self.discriminator_loss(torch.cat([real_A, real_B], 1), fake_pair)
        self.update("D", loss_D, ["D_real", "D_fake"])
        self.freeze("D")
        with self.autocast():
            self.losses["G_GAN"] = self.opt.lambda_GAN * self.adversarial(fake_pair)
        self.losses["G_L1"] = self.opt.lambda_L1 * F.l1_loss(full(fake_B), real_B)
        self.losses["G"] = self.losses["G_GAN"] + self.losses["G_L1"]
        self.update("G", self.losses["G"], ["G_GAN", "G_L1", "G"])
        self.results = {"fake_B": fake_B.detach()}

    def generate(self, images: Tensor) -> Tensor:
        """The translations of images (B, input_nc, H, W)."""
        return self.networks["G"](images)

    def adversarial(self, pairs: Tensor) -> Tensor:
        """G's loss of pairs (B, input_nc + output_nc, H, W) under D."""
        return self.gan_loss(full(self.networks["D"](pairs)), True)

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Half the sum of D's terms for real pairs and for translated ones, or earlier ones from the pool."""
        net, fake = self.networks["D"], self.pool(fake)
        if build.discriminator_mixes(self.opt):
            scores_fake, scores_real = net(fake), net(real)
        else:
            scores_fake, scores_real = net(torch.cat([fake, real])).chunk(2)
        self.losses["D_fake"] = self.gan_loss(full(scores_fake), False)
        self.losses["D_real"] = self.gan_loss(full(scores_real), True)
        loss = (self.losses["D_fake"] + self.losses["D_real"]) * 0.5
        return loss + gradient_penalty(net, real, fake) if self.opt.gan_mode == "wgangp" else loss
