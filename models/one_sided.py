"""What models with one generator share: G, D, the pool of translations, and D's part of the step."""

from __future__ import annotations

from argparse import Namespace

from torch import Tensor, nn

from models import build
from models.base_model import BaseModel
from models.gan_loss import GAN_LOSSES, discriminator_terms, gradient_penalty
from models.image_pool import ImagePool
from models.layers import full
from util.arguments import real_number


class OneSidedModel(BaseModel):
    """G translates A to B, D judges B. A subclass adds what keeps a translation close to its source.

    D has a group of its own, "D", and the losses "D_real", "D_fake" and "G_GAN".
    """

    @classmethod
    def add_options(cls, add) -> None:
        add("--lambda_GAN", 1.0, "weight of the adversarial loss", type=real_number(0))

    def __init__(self, opt: Namespace):
        super().__init__(opt)
        if opt.isTrain:
            self.gan_loss = GAN_LOSSES[opt.gan_mode]

    def build_network(self, name: str) -> nn.Module:
        return {"G": build.build_generator, "D": build.build_discriminator}[name](self.opt)

    @property
    def visual_names(self) -> list[str]:
        return ["real_A", "fake_B", "real_B"]

    def build_memories(self) -> dict[str, nn.Module]:
        self.pool = ImagePool(self.opt.pool_size)
        return {"pool": self.pool} if self.opt.pool_size else {}

    @property
    def netG(self) -> nn.Module:
        return self.networks["G"]

    @property
    def netD(self) -> nn.Module:
        return self.networks["D"]

    def judge(self, images: Tensor) -> Tensor:
        """D's scores of images (B or 2B, C, H, W)."""
        return self.netD(images)

    def step_D(self, real: Tensor, fake: Tensor) -> Tensor:
        """Update and freeze D; return lambda_GAN times G's adversarial loss under the new D."""
        with self.autocast():
            loss_D = self.compute_D_loss(real, fake)
        self.update("D", loss_D, ["D_real", "D_fake"])
        self.freeze("D")
        with self.autocast():
            return self.opt.lambda_GAN * self.adversarial(fake)

    def compute_D_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Half the sum of D's terms for translations, or earlier ones from the pool, and for real images."""
        fake, one_pass = self.pool(fake), not build.discriminator_mixes(self.opt)
        self.losses["D_fake"], self.losses["D_real"] = discriminator_terms(
            self.gan_loss, self.judge, [(fake, False), (real, True)], one_pass
        )
        loss = (self.losses["D_fake"] + self.losses["D_real"]) * 0.5
        if self.opt.gan_mode == "wgangp":
            loss = loss + gradient_penalty(self.judge, real, fake)
        return loss

    def adversarial(self, fake: Tensor) -> Tensor:
        """G's loss of translations (B, C, H, W) under D."""
        return self.gan_loss(full(self.judge(fake)), True)
