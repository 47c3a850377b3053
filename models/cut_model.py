"""CUT: contrastive unpaired translation (Park et al., ECCV 2020), the step that QS-Attn and FastCUT share.

One step generates from [A; B] in one pass and keeps the encoder's features of the real images. D sees the
translation and a real B in one pass. Then G and the heads F learn from D's score of the translation and from
PatchNCE between features of real and translated images. `choose_patches` decides which patches enter
PatchNCE: random ones here, those of least attention entropy in `models/qs_model.py`.
"""

from __future__ import annotations

from argparse import Namespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models import build, patch_sampler
from models.one_sided import OneSidedModel
from models.patch_sampler import PatchSelection
from models.patchnce import PatchNCELoss
from models.speed.split_backward import Cut
from models.speed.streams import SideStream
from util.arguments import integer, layer_list, real_number
from util.errors import UserError


class Source(NamedTuple):
    """A tapped layer of the real images: the patches chosen, and their keys (B, P, D) for PatchNCE."""

    selection: PatchSelection
    keys: Tensor


class CUTModel(OneSidedModel):
    """`--model cut`: G translates A to B, D judges B, the heads F embed patches."""

    network_names = ("G", "D", "F")
    groups = {"D": ("D",), "G": ("G", "F")}
    headline = ("G", "NCE")

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        add_contrast_options(add)
        add("--nce_idt", True, "contrast B with its own translation too")
        add("--flip_equivariance", False, "mirror the input in half of the steps, and the features back")

    @classmethod
    def check(cls, opt: Namespace) -> None:
        check_contrast(opt)
        if opt.input_nc != opt.output_nc and opt.lambda_NCE > 0:
            raise UserError(
                f"--input_nc {opt.input_nc} and --output_nc {opt.output_nc} differ, but the contrastive loss "
                "encodes translations with the encoder of the source: give both the same, or --lambda_NCE 0"
            )

    @classmethod
    def capture_obstacle(cls, opt: Namespace) -> str | None:
        if opt.flip_equivariance:
            return (
                "--cuda_graph cannot capture --flip_equivariance, which draws a number on the host per step"
            )
        return None

    def __init__(self, opt: Namespace):
        self.contrast_B = (
            opt.isTrain and opt.nce_idt and opt.lambda_NCE > 0
        )  # the identity half, NCE(y, G(y))
        super().__init__(opt)
        if opt.isTrain:
            self.patchnce = PatchNCELoss(opt.nce_T)
            self.beside_D, self.beside_sources = SideStream(self.device), SideStream(self.device)

    def build_network(self, name: str) -> nn.Module:
        if name == "F":
            return build.build_heads(self.opt, self.netG)
        return super().build_network(name)

    @property
    def netF(self) -> nn.Module:
        return self.networks["F"]

    @property
    def loss_names(self) -> list[str]:
        return ["G_GAN", "D_real", "D_fake", "G", "NCE"] + ["NCE_Y"] * self.contrast_B

    @property
    def visual_names(self) -> list[str]:
        return ["real_A", "fake_B", "real_B"] + ["idt_B"] * self.contrast_B

    def training_step(self) -> None:
        """Forward, D's update, G's and F's update.

        D's update, the choice of patches in the real images and the pass over the translations do not depend
        on each other. On CUDA they run on streams of their own, and so do their parts of the backward pass.
        A step captured in pieces is cut where D's gradient is exchanged, so all that can run beside D's
        backward pass comes before.
        """
        with self.autocast():
            fake, real_features = self.forward()
        split = "split_backward" in self.opt.experimental
        (self.split_step if split else self.whole_step)(fake, real_features)
        self.freeze("D", False)
        count = len(self.batch["A"])
        self.results = {"fake_B": fake[:count].detach()}
        if self.contrast_B:
            self.results["idt_B"] = fake[count:].detach()

    def whole_step(self, fake: Tensor, real_features: list[Tensor]) -> None:
        """Both updates; one backward pass for G and F, once all losses are there."""
        fake_B = fake[: len(self.batch["A"])]
        with self.beside_D:
            self.backward_D(self.batch["B"], fake_B)
        nce, sources = self.contrast(fake, real_features)  # `sources` are kept to the end
        loss_NCE = self.compute_NCE_loss(nce)
        with self.beside_D.resumed():
            loss_GAN = self.descend_D(fake_B)
        self.beside_D.join()
        self.update("G", self.compute_G_loss(loss_GAN, loss_NCE), self.G_losses)

    def split_step(self, fake: Tensor, real_features: list[Tensor]) -> None:
        """Both updates; PatchNCE is differentiated down to G's pass without waiting for D."""
        cut = Cut([fake[: len(self.batch["A"])], fake, *real_features])  # fake_B is D's, `fake` is PatchNCE's
        fake_B, fake, *real_features = cut.leaves
        self.zero_grad("G")
        with self.beside_D:
            self.backward_D(self.batch["B"], fake_B)
        nce, sources = self.contrast(fake, real_features)  # `sources` are kept to the end
        loss_NCE = self.compute_NCE_loss(nce)
        with self.beside_D.resumed():
            loss_GAN = self.descend_D(fake_B)
            loss_GAN.backward()
        if loss_NCE.requires_grad:  # not with --lambda_NCE 0
            loss_NCE.backward()
        self.beside_D.join()
        self.compute_G_loss(loss_GAN, loss_NCE)
        cut.backward()
        self.descend("G", self.G_losses)

    @property
    def G_losses(self) -> list[str]:
        """The losses that the update of G and F watches."""
        return [name for name in self.loss_names if not name.startswith("D_")]

    def forward(self) -> tuple[Tensor, list[Tensor]]:
        """Translations of A, and of B for the identity term; and the features of the real images."""
        real = torch.cat([self.batch["A"], self.batch["B"]]) if self.contrast_B else self.batch["A"]
        self.mirrored = self.opt.flip_equivariance and torch.rand(()).item() < 0.5
        fake, features = self.netG(real.flip(3) if self.mirrored else real, self.opt.nce_layers)
        # Mirrored images, statistics of both domains and another dropout mask give features that the
        # contrast must not compare.
        if self.mirrored or self.opt.normG == "batch" or not self.opt.no_dropout:
            features = self.encode(real)
        return fake, features

    def encode(self, images: Tensor) -> list[Tensor]:
        """Encoder features at `--nce_layers` of images of one domain, or of both stacked."""
        if self.opt.normG == "batch" and self.contrast_B:  # each domain has its own batch statistics
            domains = [self.netG.encode(domain, self.opt.nce_layers) for domain in images.chunk(2)]
            return [torch.cat(features) for features in zip(*domains, strict=True)]
        return self.netG.encode(images, self.opt.nce_layers)

    def compute_NCE_loss(self, nce: Tensor) -> Tensor:
        """(NCE(x, G(x)) + NCE(y, G(y))) / 2, or NCE(x, G(x)) alone, from each image's `nce` (B or 2B,)."""
        count = len(self.batch["A"])
        self.losses["NCE"] = loss = nce[:count].mean()
        if self.contrast_B:
            self.losses["NCE_Y"] = nce[count:].mean()
            loss = (self.losses["NCE"] + self.losses["NCE_Y"]) * 0.5
        return loss

    def compute_G_loss(self, loss_GAN: Tensor, loss_NCE: Tensor) -> Tensor:
        """lambda_GAN * GAN(G(x)) + (NCE(x, G(x)) + NCE(y, G(y))) / 2."""
        self.losses["G_GAN"] = loss_GAN
        self.losses["G"] = loss_GAN + loss_NCE
        return self.losses["G"]

    def contrast(self, fake: Tensor, real_features: list[Tensor]) -> tuple[Tensor, list[Source]]:
        """The contrastive loss of each image of the batch, (B or 2B,), and what it compares with.

        The backward pass reads the sources on another stream than the one whose memory they are, so the
        caller keeps them until that pass is over (`SideStream`).
        """
        if self.opt.lambda_NCE == 0:
            return fake.new_zeros(len(fake), dtype=torch.float32), []
        # Two autocast contexts: weight casts cached under no_grad would be reused for the queries,
        # without gradient.
        with self.beside_sources, self.autocast():
            sources = self.contrast_sources(real_features)
        with self.autocast():
            fake_features = self.encode(fake)
            self.beside_sources.join()
            return self.compute_NCE_losses(sources, fake_features), sources

    def contrast_sources(self, real_features: list[Tensor]) -> list[Source]:
        """The patches chosen at each tapped layer of the real images, and their embeddings."""
        selections, patches = [], []  # patches: (B, P, C) of each layer
        for number, features in enumerate(real_features):
            features = self.prepare_features(number, features)
            selections.append(self.choose_patches(number, features))
            with torch.no_grad():
                patches.append(selections[-1].route(features))
        with torch.no_grad():
            keys = self.netF.of_layers(patches)
        return [Source(*source) for source in zip(selections, keys, strict=True)]

    def compute_NCE_losses(self, sources: list[Source], fake_features: list[Tensor]) -> Tensor:
        """lambda_NCE * PatchNCE of each image and its translation, mean over patches, layers: (B or 2B,)."""
        patches = []  # (B, P, C) of each layer
        for number, (source, target) in enumerate(zip(sources, fake_features, strict=True)):
            target = self.prepare_features(number, target.flip(3) if self.mirrored else target)
            patches.append(source.selection.route(target))
        keys = [source.keys for source in sources]
        return self.opt.lambda_NCE * self.patchnce.of_layers(self.netF.of_layers(patches), keys).mean(0)

    def prepare_features(self, number: int, features: Tensor) -> Tensor:
        """Features (B, C, H, W) of the `number`-th tapped layer, as patches are taken from them."""
        return features

    def choose_patches(self, number: int, features: Tensor) -> PatchSelection:
        """Random positions, the same for all images of a domain."""
        b, _, h, w = features.shape
        domains = 1 + self.contrast_B
        locations = [  # A's are drawn before B's
            patch_sampler.random_locations(h * w, self.opt.num_patches, features.device)
            for _ in range(domains)
        ]
        return PatchSelection(torch.stack(locations).repeat_interleave(b // domains, 0))


class FastCUTModel(CUTModel):
    """`--model fastcut`: CUT's light form, without identity term, trained for half as long."""

    defaults = {
        "lambda_NCE": 10.0,
        "nce_idt": False,
        "flip_equivariance": True,
        "n_epochs": 150,
        "n_epochs_decay": 50,
    }


def add_contrast_options(add) -> None:
    """Declare the options of models that contrast patches with `add(flag, default, help, ...)`."""
    add("--lambda_NCE", 1.0, "weight of the contrastive loss", type=real_number(0))
    add(
        "--nce_layers",
        [0, 4, 8, 12, 16],
        "generator layers contrasted; of dcl and qs_dual 4,8,12,16",
        type=layer_list,
        shown="0,4,8,12,16; U-Nets 0,1,2,3,4",
    )
    add("--netF", "mlp_sample", "heads of the features; sample: none", choices=("mlp_sample", "sample"))
    add("--netF_nc", 256, "width of the heads", type=integer(1), only={"netF": ("mlp_sample",)})
    add("--nce_T", 0.07, "temperature of PatchNCE", type=real_number(0, above=True))
    add("--num_patches", 256, "patches (queries) per image and layer", type=integer(1))


def check_contrast(opt: Namespace) -> None:
    """UserError where contrasting patches would learn nothing, or a layer it names does not exist."""
    build.layer_channels(opt)
    if opt.lambda_GAN == 0 and opt.lambda_NCE == 0:
        raise UserError("--lambda_GAN and --lambda_NCE are both 0: there is nothing to learn from")
