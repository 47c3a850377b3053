"""The textbook step of MUNIT, in the released order, with a pass of its own for each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models import munit_networks
from models.textbook.base import TextbookStep


class TextbookMUNIT(TextbookStep):
    """The discriminators' update, then the generators' (Huang et al., ECCV 2018, section 3)."""

    def optimize_parameters(self) -> None:
        self.update_dis()
        self.update_gen()

    def update_dis(self) -> None:
        """gan_w * (dis_a + dis_b), where dis = sum over scales of mean(D(fake)^2) + mean((D(real) - 1)^2)."""
        gen_a, gen_b, dis_a, dis_b = (self.networks[name] for name in self.model.network_names)
        x_a, x_b = self.model.batch["A"], self.model.batch["B"]
        s_a, s_b = self.draw_style(), self.draw_style()
        with torch.no_grad():
            c_a, _ = gen_a.encode(x_a)
            c_b, _ = gen_b.encode(x_b)
            x_ba, x_ab = gen_a.decode(c_b, s_a), gen_b.decode(c_a, s_b)
        losses = self.losses
        losses["dis_a"] = self.towards(dis_a(x_ba), 0) + self.towards(dis_a(x_a), 1)
        losses["dis_b"] = self.towards(dis_b(x_ab), 0) + self.towards(dis_b(x_b), 1)
        losses["dis_total"] = self.opt.gan_w * losses["dis_a"] + self.opt.gan_w * losses["dis_b"]
        self.update("dis", losses["dis_total"])

    def update_gen(self) -> None:
        """Adversarial, reconstruction of images, styles and content, and cycle, for both domains."""
        opt, losses = self.opt, self.losses
        gen_a, gen_b, dis_a, dis_b = (self.networks[name] for name in self.model.network_names)
        x_a, x_b = self.model.batch["A"], self.model.batch["B"]
        s_a, s_b = self.draw_style(), self.draw_style()
        c_a, s_a_prime = gen_a.encode(x_a)
        c_b, s_b_prime = gen_b.encode(x_b)
        x_a_recon, x_b_recon = gen_a.decode(c_a, s_a_prime), gen_b.decode(c_b, s_b_prime)
        x_ba, x_ab = gen_a.decode(c_b, s_a), gen_b.decode(c_a, s_b)
        c_b_recon, s_a_recon = gen_a.encode(x_ba)
        c_a_recon, s_b_recon = gen_b.encode(x_ab)
        losses["gen_recon_x_a"], losses["gen_recon_x_b"] = distance(x_a_recon, x_a), distance(x_b_recon, x_b)
        losses["gen_recon_s_a"], losses["gen_recon_s_b"] = distance(s_a_recon, s_a), distance(s_b_recon, s_b)
        losses["gen_recon_c_a"], losses["gen_recon_c_b"] = distance(c_a_recon, c_a), distance(c_b_recon, c_b)
        losses["gen_adv_a"], losses["gen_adv_b"] = self.towards(dis_a(x_ba), 1), self.towards(dis_b(x_ab), 1)
        weights = {
            "gen_adv": opt.gan_w,
            "gen_recon_x": opt.recon_x_w,
            "gen_recon_s": opt.recon_s_w,
            "gen_recon_c": opt.recon_c_w,
        }
        if opt.recon_x_cyc_w > 0:
            losses["gen_cycrecon_x_a"] = distance(gen_a.decode(c_a_recon, s_a_prime), x_a)
            losses["gen_cycrecon_x_b"] = distance(gen_b.decode(c_b_recon, s_b_prime), x_b)
            weights["gen_cycrecon_x"] = opt.recon_x_cyc_w
        losses["gen_total"] = sum(
            weight * losses[f"{term}_{domain}"] for term, weight in weights.items() for domain in "ab"
        )
        self.update("gen", losses["gen_total"])  # the discriminators' next zero_grad clears what this leaves

    def towards(self, maps: list[Tensor], target: float) -> Tensor:
        """Sum over scales of mean((D - target)^2), or of the cross-entropy of sigmoid(D)."""
        if self.opt.gan_mode == "lsgan":
            return sum(torch.mean((scores - target) ** 2) for scores in maps)
        chances = [torch.sigmoid(scores) for scores in maps]
        return sum(F.binary_cross_entropy(chance, torch.full_like(chance, target)) for chance in chances)

    def draw_style(self) -> Tensor:
        count = len(self.model.batch["A"])
        return munit_networks.random_styles(count, self.opt.style_dim, self.model.device)

    def translate(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) translated one after the other, each with a random style."""
        target, source = (self.networks[name] for name in self.model.translating(self.opt))
        with torch.inference_mode():
            styles = munit_networks.random_styles(len(images), self.opt.style_dim, self.model.device)
            pairs = zip(images.split(1), styles.split(1), strict=True)
            return torch.cat([target.decode(source.encode(image)[0], style) for image, style in pairs])


def distance(x: Tensor, y: Tensor) -> Tensor:
    """mean |x - y|"""
    return torch.mean(torch.abs(x - y))
