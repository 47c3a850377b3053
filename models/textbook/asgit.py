"""ASGIT's textbook steps: maps by the released formulas, a memory of whole maps, every pass by itself.

The memory is a dict from path to a map at the image's size, as released, so images must not be cropped or
mirrored differently from step to step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base_model import BaseModel
from models.gan_loss import gradient_penalty
from models.textbook.base import TextbookStep
from models.textbook.cycle_gan import TextbookCycleGAN


class TextbookGuidance(TextbookStep):
    """Shared by the textbook steps of guided models. Images are (B, C, H, W), maps (B, 1, H, W) in [0, 1]."""

    def __init__(self, model: BaseModel):
        super().__init__(model)
        self.memory: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
        self.fusion, self.remembers = self.opt.attention_fusion, model.remembers(self.opt)

    def paths(self, domain: str) -> list[str]:
        """The files of the batch."""
        paths, count = self.model.image_paths, len(self.model.batch["A"])
        return paths[:count] if domain == "A" else paths[count:]

    def remembered(self, domain: str) -> Tensor:
        """The maps of the batch's images, ones for those not seen before."""
        images = self.model.batch[domain]
        known, unseen = self.memory[domain], torch.ones_like(images[0, :1])
        return torch.stack([known.get(path, unseen) for path in self.paths(domain)])

    def remember(self, domain: str, maps: Tensor) -> None:
        """Keep the new maps of the batch's images."""
        self.memory[domain] |= dict(zip(self.paths(domain), maps, strict=True))

    def look(self, name: str, images: Tensor) -> Tensor:
        """Where a discriminator looks: min-max per image, enlarged, a constant."""
        return whole_map(self.networks[name].attend(images)[1], images)

    def generate(self, name: str, x: Tensor, maps: Tensor | None) -> Tensor:
        """A translation guided by maps; without maps not guided, which for alpha means ones."""
        net = self.networks[name]
        if self.fusion == "none":
            return net(x)
        if self.fusion == "alpha":
            maps = torch.ones_like(x[:, :1]) if maps is None else maps
            return self.run(net, torch.cat([x, maps], 1))
        stage = net.fused_before
        x = x if stage == 0 else net.model[:stage](x)
        if maps is not None:
            small = F.interpolate(maps, x.shape[2:], mode="bilinear")
            x = x * (1 + small) if self.fusion == "rmult" else x * small
        return self.run(net, x) if stage == 0 else net.model[stage:](x)

    def run(self, net: nn.Module, x: Tensor) -> Tensor:
        """A generator without its fusion."""
        return net.model(x, []) if self.opt.netG.startswith("unet") else net.model(x)

    def translate(self, images: Tensor) -> Tensor:
        translator = self.model.translator()
        with torch.inference_mode():
            return torch.cat([translator(image[None]) for image in images])


class TextbookASGIT(TextbookGuidance, TextbookCycleGAN):
    """CycleGAN's textbook step with guided generators."""

    def forward(self, real_A: Tensor, real_B: Tensor) -> dict[str, Tensor]:
        if self.fusion == "none":
            return super().forward(real_A, real_B)
        maps_A = self.remembered("A") if self.remembers else self.look("D_B", real_A)
        maps_B = self.remembered("B") if self.remembers else self.look("D_A", real_B)
        fake_B = self.generate("G_A", real_A, maps_A)
        fake_A = self.generate("G_B", real_B, maps_B)
        rec_A = self.generate("G_B", fake_B, None if self.remembers else self.look("D_A", fake_B))
        rec_B = self.generate("G_A", fake_A, None if self.remembers else self.look("D_B", fake_A))
        images = {"fake_B": fake_B, "fake_A": fake_A, "rec_A": rec_A, "rec_B": rec_B}
        if self.opt.lambda_identity > 0:
            images["idt_A"] = self.generate("G_A", real_B, None if self.remembers else maps_B)
            images["idt_B"] = self.generate("G_B", real_A, None if self.remembers else maps_A)
        return images

    def judge(self, name: str, fake: Tensor) -> Tensor:
        if not self.remembers:
            return super().judge(name, fake)
        scores, raw = self.networks[name].attend(fake)
        self.remember("A" if name == "D_A" else "B", whole_map(raw, fake))
        return scores

    def discriminator_loss(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
        loss = super().discriminator_loss(name, real, fake)
        if self.opt.use_rec:
            reconstruction = self.images["rec_B" if name == "D_A" else "rec_A"].detach()
            scores = self.networks[name](reconstruction)
            loss = loss + self.opt.rec_coef * self.model.gan_loss(scores, False)
        return loss


class TextbookASGITSupervised(TextbookGuidance):
    """pix2pix's step with a guided generator: D on translated and on real pairs, then G."""

    def optimize_parameters(self) -> None:
        opt, losses, gan_loss = self.opt, self.losses, self.model.gan_loss
        real_A, real_B = self.model.batch["A"], self.model.batch["B"]
        netD = self.networks["D"]
        fake_B = self.generate("G", real_A, self.remembered("A") if self.remembers else None)
        fake_pair, real_pair = torch.cat([real_A, fake_B], 1), torch.cat([real_A, real_B], 1)

        self.freeze("D", False)
        shown = self.model.pool(fake_pair)
        losses["D_fake"] = gan_loss(netD(shown), False)
        losses["D_real"] = gan_loss(netD(real_pair), True)
        loss = (losses["D_fake"] + losses["D_real"]) * 0.5
        if opt.gan_mode == "wgangp":
            loss = loss + gradient_penalty(netD, real_pair, shown)
        self.update("D", loss)

        self.freeze("D")
        if self.remembers:
            scores, raw = netD.attend(fake_pair)
            self.remember("A", whole_map(raw, real_A))
        else:
            scores = netD(fake_pair)
        losses["G_GAN"] = opt.lambda_GAN * gan_loss(scores, True)
        losses["G_L1"] = opt.lambda_L1 * (fake_B - real_B).abs().mean()
        losses["G"] = losses["G_GAN"] + losses["G_L1"]
        self.update("G", losses["G"])


def whole_map(raw: Tensor, images: Tensor) -> Tensor:
    """Raw maps scaled to [0, 1] image by image and enlarged to the images' size, detached."""
    scaled = [(one - one.min()) / (one.max() - one.min()) for one in raw.detach()]
    return F.interpolate(torch.stack(scaled), images.shape[2:], mode="bilinear")
