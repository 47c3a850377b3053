"""What two-generator textbook steps share: the discriminators' update, each score in a pass of its own."""

from __future__ import annotations

from torch import Tensor

from models.gan_loss import gradient_penalty
from models.textbook.base import TextbookStep


class TextbookTwoSided(TextbookStep):
    """Two discriminators, each with a backward pass of its own."""

    def update_discriminators(self, fake_A: Tensor, fake_B: Tensor) -> None:
        """Update D_A and D_B on the real images of the batch and on translations."""
        losses, batch = self.losses, self.model.batch
        self.freeze("D", False)
        for optimizer in (self.optimizers["D_A"], self.optimizers["D_B"]):
            optimizer.zero_grad()
        losses["D_A"] = self.discriminator_loss("D_A", batch["B"], fake_B)
        losses["D_B"] = self.discriminator_loss("D_B", batch["A"], fake_A)
        losses["D_A"].backward()
        losses["D_B"].backward()
        for optimizer in (self.optimizers["D_A"], self.optimizers["D_B"]):
            optimizer.step()

    def discriminator_loss(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
        """Half the sum of the terms of real images and of translations from the pool."""
        fake = self.model.pools[name](fake)
        net, gan_loss = self.networks[name], self.model.gan_loss
        loss = (gan_loss(net(real), True) + gan_loss(net(fake), False)) * 0.5
        return loss + gradient_penalty(net, real, fake) if self.opt.gan_mode == "wgangp" else loss
