"""Supervised ASGIT: pix2pix guided by its discriminator's last attention map (Lin et al., supplement).

G translates a fused with D's map of the last pair (a, G(a)), which a memory keeps; all ones at first
(`models/guidance.py`). D judges pairs only, so a alone has no map. Testing has no maps and needs no D. With
`--attention_fusion none` it is pix2pix.
"""

from __future__ import annotations

from argparse import Namespace

import torch
from torch import Tensor, nn

from models.guidance import GuidedModel
from models.layers.precision import full
from models.pix2pix_model import Pix2PixModel


class ASGITSupervisedModel(GuidedModel, Pix2PixModel):
    """`--model asgit_supervised`."""

    sources = ("A",)
    defaults = {**Pix2PixModel.defaults, "netD": "posthoc_attn"}

    @classmethod
    def observer(cls, opt: Namespace) -> str:
        return "D"

    def observed(self, images: Tensor, translations: Tensor) -> Tensor:
        return torch.cat([images, translations], 1)

    def build_network(self, name: str) -> nn.Module:
        return self.build_guided() if name == "G" else super().build_network(name)

    def training_step(self) -> None:
        self.maps: dict[str, Tensor] = {}
        super().training_step()
        self.results |= self.maps

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
