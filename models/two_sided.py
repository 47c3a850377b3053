"""What models with two generators share: networks, pools, and the discriminators' update.

G_A translates A to B and G_B translates B to A. D_A judges images of B (real_B against fake_B = G_A(A)), D_B
judges images of A, as in CycleGAN's code.
"""

from __future__ import annotations

from argparse import Namespace

import torch
from torch import Tensor, nn

from models import build
from models.base_model import BaseModel
from models.gan_loss import GAN_LOSSES, discriminator_terms, gradient_penalty
from models.image_pool import ImagePool
from models.layers import full
from util.errors import UserError


class TwoSidedModel(BaseModel):
    """Two generators, two discriminators; a subclass adds its losses and the order of its step."""

    network_names = ("G_A", "G_B", "D_A", "D_B")
    groups = {"G": ("G_A", "G_B"), "D": ("D_A", "D_B")}

    @classmethod
    def translating(cls, opt: Namespace) -> tuple[str, ...]:
        """G_A in the direction of training, G_B in the other one."""
        return ("G_A",) if opt.direction == getattr(opt, "trained_direction", opt.direction) else ("G_B",)

    def __init__(self, opt: Namespace):
        if opt.input_nc != opt.output_nc and self.translating(opt) == ("G_B",):
            raise UserError(
                f"--direction {opt.direction} against the training's needs as many channels in A as in B, "
                f"but --input_nc is {opt.input_nc} and --output_nc {opt.output_nc}: train another run"
            )
        super().__init__(opt)
        if opt.isTrain:
            self.gan_loss = GAN_LOSSES[opt.gan_mode]

    def build_network(self, name: str) -> nn.Module:
        opt = self.opt
        if name.startswith("G_"):
            return build.build_generator(opt, backwards=name == "G_B")
        return build.build_discriminator(opt, opt.output_nc if name == "D_A" else opt.input_nc)

    def build_memories(self) -> dict[str, nn.Module]:
        self.pools = {name: ImagePool(self.opt.pool_size) for name in ("D_A", "D_B")}
        return {f"pool_{name}": pool for name, pool in self.pools.items()} if self.opt.pool_size else {}

    def generate(self, name: str, *images: Tensor) -> list[Tensor]:
        """Batches of images through the generator `name`; in one pass where they are alike and do not mix."""
        net = self.networks[name]
        if build.generator_mixes(self.opt) or len({batch.shape[2:] for batch in images}) > 1:
            return [net(batch) for batch in images]
        return list(net(torch.cat(images)).split([len(batch) for batch in images]))

    def adversarial(self, name: str, fake: Tensor) -> Tensor:
        """The generators' loss of translations (B, C, H, W) under the discriminator `name`."""
        return self.gan_loss(full(self.networks[name](fake)), True)

    def discriminator_loss(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
        """Half the sum of the terms of real images and of translations from the pool."""
        net, fake = self.networks[name], self.pools[name](fake)
        one_pass = not build.discriminator_mixes(self.opt)
        loss_real, loss_fake = discriminator_terms(
            self.gan_loss, net, [(real, True), (fake, False)], one_pass
        )
        loss = (loss_real + loss_fake) * 0.5
        if self.opt.gan_mode == "wgangp":
            loss = loss + gradient_penalty(net, real, fake)
        return loss

    def update_discriminators(self, fake_A: Tensor, fake_B: Tensor) -> None:
        """Update D_A and D_B on the real images of the batch and on translations."""
        self.freeze("D", False)
        with self.autocast():
            self.losses["D_A"] = self.discriminator_loss("D_A", self.batch["B"], fake_B)
            self.losses["D_B"] = self.discriminator_loss("D_B", self.batch["A"], fake_A)
        self.update("D", self.losses["D_A"] + self.losses["D_B"], ["D_A", "D_B"])
