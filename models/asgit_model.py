"""ASGIT, attention-based spatial guidance (Lin et al.): CycleGAN guided by its discriminators' attention.

With A(x) the attention map of an image x, G_A translates a fused with A(a) (`models/attention/fusion.py`).
D_A judges B and D_B judges A, as in CycleGAN.

- `--attention_source memory` (v1): A(a) is D_A's map of the last translation of a, all ones at first. The
  memory follows crops and mirroring. Reconstructions get no map. Testing has no maps and needs no D.
- `--attention_source discriminator` (v2): A(a) is D_B's map of a; on the way back, D_A's map of G_A(a)
  guides G_B. Testing needs the discriminator of the source.

Maps are constants: no gradient passes through them.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models import build
from models.attention.fusion import FUSIONS, normalise_map
from models.attention.guidance import GuidedModel
from models.cycle_gan_model import CycleGANModel
from models.layers import full
from models.pix2pix_model import Pix2PixModel

SOURCES = ("memory", "discriminator")
JUDGE = {"A": "D_B", "B": "D_A"}  # the discriminator that judges images of a domain


class ASGITModel(GuidedModel, CycleGANModel):
    """`--model asgit`."""

    sources = ("A", "B")
    equal_sizes = True  # a map of one domain stands beside images of both
    defaults = {**CycleGANModel.defaults, "netD": "posthoc_attn", "lambda_identity": 0.0}
    translation_options = (*GuidedModel.translation_options, "attention_source")

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        add(
            "--attention_source",
            "memory",
            "where maps come from: D's last look at the image's translation, or D's look at the image itself",
            choices=SOURCES,
            only={"attention_fusion": tuple(FUSIONS)},
            scope="fixed",
        )
        add("--use_rec", False, "show the discriminators reconstructions too, as fakes")

    @classmethod
    def remembers(cls, opt: Namespace) -> bool:
        return super().remembers(opt) and opt.attention_source == "memory"

    @classmethod
    def translating(cls, opt: Namespace) -> tuple[str, ...]:
        """The generator, and where maps come from a discriminator, that of the source."""
        (generator,) = super().translating(opt)
        if opt.attention_fusion == "none" or cls.remembers(opt):
            return (generator,)
        return (generator, JUDGE[generator[-1]])

    @classmethod
    def observer(cls, opt: Namespace) -> str:
        """Of the memory, D_A of translations of A; else D_B of A itself."""
        generator, *judge = cls.translating(opt)
        return judge[0] if judge else f"D_{generator[-1]}"

    def observed(self, images: Tensor, translations: Tensor) -> Tensor:
        return images if len(self.translating(self.opt)) > 1 else translations

    @classmethod
    def mixes_images(cls, opt: Namespace) -> bool:
        looks = len(cls.translating(opt)) > 1
        return super().mixes_images(opt) or (looks and build.discriminator_mixes(opt))

    def build_network(self, name: str) -> nn.Module:
        if name.startswith("G_"):
            return self.build_guided(backwards=name == "G_B")
        return super().build_network(name)

    def forward(self) -> dict[str, Tensor]:
        if not self.guides:
            return super().forward()
        real_A, real_B = self.batch["A"], self.batch["B"]
        G_A, G_B = self.networks["G_A"], self.networks["G_B"]
        maps = self.source_maps()
        self.maps |= {"attn_A": maps["A"], "attn_B": maps["B"]}
        images = {"fake_B": G_A(real_A, maps["A"]), "fake_A": G_B(real_B, maps["B"])}
        images["rec_A"] = G_B(images["fake_B"], self.look("B", images["fake_B"]))
        images["rec_B"] = G_A(images["fake_A"], self.look("A", images["fake_A"]))
        if self.opt.lambda_identity > 0:
            images["idt_A"] = G_A(real_B, None if self.memory else maps["B"])
            images["idt_B"] = G_B(real_A, None if self.memory else maps["A"])
        return images

    def source_maps(self) -> dict[str, Tensor]:
        if self.memory:
            return super().source_maps()
        return {domain: self.look(domain, self.batch[domain]) for domain in self.sources}

    @torch.no_grad()
    def look(self, domain: str, images: Tensor) -> Tensor | None:
        """The discriminator's map of a domain's images (B, C, H, W); None where maps come from the memory."""
        return None if self.memory else normalise_map(self.networks[JUDGE[domain]].raw_map(images))

    def adversarial(self, name: str, fake: Tensor) -> Tensor:
        """As CycleGAN's; the same pass gives the map to remember for the source of a translation."""
        if not self.memory:
            return super().adversarial(name, fake)
        score, attention = self.score_and_map(name, fake)
        self.maps[f"next_{name[-1]}"] = attention  # D_A judges translations of A
        return self.gan_loss(full(score), True)

    def discriminator_loss(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
        """As CycleGAN's, + GAN(D(reconstruction), fake) / 2 with `--use_rec`."""
        loss = super().discriminator_loss(name, real, fake)
        if self.opt.use_rec:
            reconstruction = self.results["rec_B" if name == "D_A" else "rec_A"]
            loss = loss + 0.5 * self.gan_loss(full(self.networks[name](reconstruction)), False)
        return loss


class ASGITSupervisedModel(GuidedModel, Pix2PixModel):
    """`--model asgit_supervised`: pix2pix guided by its discriminator's last attention map (the supplement).

    G translates a fused with D's map of the last pair (a, G(a)), which a memory keeps; all ones at first. D
    judges pairs only, so a alone has no map. Testing has no maps and needs no D. With `--attention_fusion
    none` it is pix2pix.
    """

    sources = ("A",)
    # instance norms, as the supplement says
    defaults = {**Pix2PixModel.defaults, "netD": "posthoc_attn", "normG": "instance", "normD": "instance"}

    @classmethod
    def defaults_with(cls, options: Mapping[str, object]) -> dict[str, object]:
        """pix2pix's own norms without attention."""
        plain = options.get("attention_fusion") == "none"
        return {**cls.defaults, "normG": "batch", "normD": "batch"} if plain else cls.defaults

    @classmethod
    def observer(cls, opt: Namespace) -> str:
        return "D"

    def observed(self, images: Tensor, translations: Tensor) -> Tensor:
        return torch.cat([images, translations], 1)

    def build_network(self, name: str) -> nn.Module:
        return self.build_guided() if name == "G" else super().build_network(name)

    def generate(self, images: Tensor) -> Tensor:
        if not self.guides:
            return super().generate(images)
        self.maps["attn_A"] = attention = self.source_maps()["A"]
        return self.networks["G"](images, attention)

    def adversarial(self, pairs: Tensor) -> Tensor:
        """As pix2pix's; the same pass gives the map to remember."""
        if not self.guides:
            return super().adversarial(pairs)
        score, self.maps["next_A"] = self.score_and_map("D", pairs)
        return self.gan_loss(full(score), True)
