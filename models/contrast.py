"""What models share that contrast patches of an image with those of its translation, by PatchNCE.

`choose_patches` decides which patches: random ones here, those of least attention entropy in
`models/qs_model.py`. Shapes: B images, C channels, P patches, D embedding width.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor

from models import build, patch_sampler
from models.base_model import BaseModel
from models.patch_sampler import PatchHeads, PatchSelection
from models.patchnce import PatchNCELoss
from models.qs_attn import QuerySelection
from util.arguments import integer, layer_list, real_number
from util.errors import UserError


class ContrastModel(BaseModel):
    """Chooses patches at `--nce_layers` of the sources, and embeds them in sources and translations."""

    domains = 1  # in a batch of features; each draws positions of its own

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        add("--lambda_NCE", 1.0, "weight of the contrastive loss", type=real_number(0))
        add(
            "--nce_layers",
            [0, 4, 8, 12, 16],
            "generator layers contrasted; of dcl and qs_dual 4,8,12,16",
            type=layer_list,
            shown="0,4,8,12,16; U-Nets 0,1,2,3,4",
            scope="fixed",
        )
        add(
            "--netF",
            "mlp_sample",
            "heads of the features; sample: none",
            choices=("mlp_sample", "sample"),
            scope="fixed",
        )
        add(
            "--netF_nc",
            256,
            "width of the heads",
            type=integer(1),
            only={"netF": ("mlp_sample",)},
            scope="fixed",
        )
        add("--nce_T", 0.07, "temperature of PatchNCE", type=real_number(0, above=True))
        add("--num_patches", 256, "patches (queries) per image and layer", type=integer(1))

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        build.layer_channels(opt)
        if opt.lambda_GAN == 0 and opt.lambda_NCE == 0:
            raise UserError("--lambda_GAN and --lambda_NCE are both 0: there is nothing to learn from")

    def __init__(self, opt: Namespace):
        super().__init__(opt)
        if opt.isTrain:
            self.patchnce = PatchNCELoss(opt.nce_T)

    def prepare_features(self, number: int, features: Tensor) -> Tensor:
        """Features (B, C, H, W) of the `number`-th tapped layer, as patches are taken from them."""
        return features

    def choose_patches(self, number: int, features: Tensor) -> PatchSelection | QuerySelection:
        """Random positions of features (B, C, H, W), the same for all images of a domain; A's come first."""
        b, _, h, w = features.shape
        drawn = [
            patch_sampler.random_locations(h * w, self.opt.num_patches, features.device)
            for _ in range(self.domains)
        ]
        return PatchSelection(torch.stack(drawn).repeat_interleave(b // self.domains, 0))

    def prepared(self, features: Sequence[Tensor]) -> list[Tensor]:
        """`prepare_features` of every tapped layer."""
        return [self.prepare_features(number, of_layer) for number, of_layer in enumerate(features)]

    @staticmethod
    def embed(
        head: PatchHeads, chosen: Sequence[PatchSelection | QuerySelection], features: Sequence[Tensor]
    ) -> list[Tensor]:
        """Unit vectors (B, P, D) of the chosen patches of each tapped layer."""
        return head.of_layers([selection.route(f) for selection, f in zip(chosen, features, strict=True)])
