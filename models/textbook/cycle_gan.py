"""CycleGAN's textbook step: every image and every score in a pass of its own, in the released order."""

from __future__ import annotations

from models.textbook.two_sided import TextbookTwoSided


class TextbookCycleGAN(TextbookTwoSided):
    """Forward, both generators, both discriminators."""

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

        self.update_discriminators(fake_A, fake_B)
