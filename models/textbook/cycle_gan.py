"""CycleGAN's textbook step: every image and every score in a pass of its own, in the released order."""

from __future__ import annotations

from torch import Tensor

from models.textbook.two_sided import TextbookTwoSided


class TextbookCycleGAN(TextbookTwoSided):
    """Forward, both generators, both discriminators."""

    def optimize_parameters(self) -> None:
        opt, losses = self.opt, self.losses
        real_A, real_B = self.model.batch["A"], self.model.batch["B"]
        self.images = images = self.forward(real_A, real_B)

        self.freeze("D")
        losses["idt_A"] = losses["idt_B"] = images["fake_A"].new_zeros(())
        if opt.lambda_identity > 0:
            losses["idt_A"] = (images["idt_A"] - real_B).abs().mean() * opt.lambda_B * opt.lambda_identity
            losses["idt_B"] = (images["idt_B"] - real_A).abs().mean() * opt.lambda_A * opt.lambda_identity
        losses["G_A"] = self.model.gan_loss(self.judge("D_A", images["fake_B"]), True)
        losses["G_B"] = self.model.gan_loss(self.judge("D_B", images["fake_A"]), True)
        losses["cycle_A"] = (images["rec_A"] - real_A).abs().mean() * opt.lambda_A
        losses["cycle_B"] = (images["rec_B"] - real_B).abs().mean() * opt.lambda_B
        losses["G"] = sum(
            value for name, value in losses.items() if not name.startswith("D_") and name != "G"
        )
        self.update("G", losses["G"])

        self.update_discriminators(images["fake_A"], images["fake_B"])

    def forward(self, real_A: Tensor, real_B: Tensor) -> dict[str, Tensor]:
        """Translations, reconstructions and, where they have a weight, identities."""
        G_A, G_B = self.networks["G_A"], self.networks["G_B"]
        images = {"fake_B": G_A(real_A), "fake_A": G_B(real_B)}
        images |= {"rec_A": G_B(images["fake_B"]), "rec_B": G_A(images["fake_A"])}
        if self.opt.lambda_identity > 0:
            images |= {"idt_A": G_A(real_B), "idt_B": G_B(real_A)}
        return images

    def judge(self, name: str, fake: Tensor) -> Tensor:
        """The scores of translations for the generators' loss."""
        return self.networks[name](fake)
