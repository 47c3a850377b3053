"""CycleGAN's textbook step: every image and every score in a pass of its own, in the released order."""

from __future__ import annotations

from torch import Tensor

from models.gan_loss import gradient_penalty
from models.textbook.base import TextbookStep


class TextbookCycleGAN(TextbookStep):
    """Forward, both generators, both discriminators (each with a backward pass of its own)."""

    def optimize_parameters(self) -> None:
        opt, nets, losses = self.opt, self.networks, self.losses
        real_A, real_B = self.model.batch["A"], self.model.batch["B"]
        fake_B = nets["G_A"](real_A)
        rec_A = nets["G_B"](fake_B)
        fake_A = nets["G_B"](real_B)
        rec_B = nets["G_A"](fake_A)

        self.freeze("D")
        losses["idt_A"] = losses["idt_B"] = fake_A.new_zeros(())
        if opt.lambda_identity > 0:
            losses["idt_A"] = (nets["G_A"](real_B) - real_B).abs().mean() * opt.lambda_B * opt.lambda_identity
            losses["idt_B"] = (nets["G_B"](real_A) - real_A).abs().mean() * opt.lambda_A * opt.lambda_identity
        losses["G_A"] = self.model.gan_loss(nets["D_A"](fake_B), True)
        losses["G_B"] = self.model.gan_loss(nets["D_B"](fake_A), True)
        losses["cycle_A"] = (rec_A - real_A).abs().mean() * opt.lambda_A
        losses["cycle_B"] = (rec_B - real_B).abs().mean() * opt.lambda_B
        losses["G"] = sum(
            value for name, value in losses.items() if not name.startswith("D_") and name != "G"
        )
        self.update("G", losses["G"])

        self.freeze("D", False)
        for optimizer in (self.optimizers["D_A"], self.optimizers["D_B"]):
            optimizer.zero_grad()
        losses["D_A"] = self._discriminator_loss("D_A", real_B, fake_B)
        losses["D_B"] = self._discriminator_loss("D_B", real_A, fake_A)
        losses["D_A"].backward()
        losses["D_B"].backward()
        for optimizer in (self.optimizers["D_A"], self.optimizers["D_B"]):
            optimizer.step()

    def _discriminator_loss(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
        fake = self.model.pools[name](fake)
        net, gan_loss = self.networks[name], self.model.gan_loss
        loss = (gan_loss(net(real), True) + gan_loss(net(fake), False)) * 0.5
        return loss + gradient_penalty(net, real, fake) if self.opt.gan_mode == "wgangp" else loss
