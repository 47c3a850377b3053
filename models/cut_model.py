"""CUT: contrastive unpaired translation (Park et al., ECCV 2020); the step that QS-Attn and FastCUT share.

`choose_patches` decides which patches enter PatchNCE: random ones here, those of least attention entropy in
`models/qs_model.py`. Shapes: B images, C channels, P patches, D embedding width.
"""

from __future__ import annotations

from argparse import Namespace

import torch
from torch import Tensor, nn

from models import build, patch_sampler
from models.one_sided import OneSidedModel
from models.patch_sampler import PatchSelection
from models.patchnce import PatchNCELoss
from models.speed.streams import SideStream
from util.arguments import integer, layer_list, real_number
from util.errors import UserError


class CUTModel(OneSidedModel):
    """`--model cut`: G translates A to B, D judges B, the heads F embed patches. The loss of G and F is

        lambda_GAN GAN(D, G(a)) + lambda_NCE (PatchNCE(a, G(a)) + PatchNCE(b, G(b))) / 2

    with PatchNCE between features of an image and of its translation, mean over patches and layers.
    """

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
        # the identity half, PatchNCE(b, G(b))
        self.contrast_B = opt.isTrain and opt.nce_idt and opt.lambda_NCE > 0
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
        """Translate [A; B] and keep the encoder's features of both; update D; update G and F.

        D's update, the choice of patches and the encoder's pass over the translations do not depend on each
        other: on CUDA they run on streams of their own, and so do their backward passes.
        """
        opt, losses, count = self.opt, self.losses, len(self.batch["A"])
        real = torch.cat([self.batch["A"], self.batch["B"]]) if self.contrast_B else self.batch["A"]
        with self.autocast():
            mirrored = opt.flip_equivariance and torch.rand(()).item() < 0.5
            fake, sources = self.netG(real.flip(3) if mirrored else real, opt.nce_layers)
            if mirrored or opt.normG == "batch" or not opt.no_dropout:
                sources = self.encode(real)  # features of the images as they are
        with self.beside_D:
            losses["G_GAN"] = self.step_D(self.batch["B"], fake[:count])
        if opt.lambda_NCE > 0:
            nce, kept = self.contrast(sources, fake, mirrored)
            nce = opt.lambda_NCE * nce  # (B or 2B,)
        else:
            nce = fake.new_zeros(count, dtype=torch.float32)
        self.beside_D.join()
        losses["NCE"] = loss_NCE = nce[:count].mean()
        if self.contrast_B:
            losses["NCE_Y"] = nce[count:].mean()
            loss_NCE = (losses["NCE"] + losses["NCE_Y"]) / 2
        losses["G"] = losses["G_GAN"] + loss_NCE
        self.update("G", losses["G"], [name for name in self.loss_names if not name.startswith("D_")])
        self.freeze("D", False)
        self.results = {"fake_B": fake[:count].detach()}
        if self.contrast_B:
            self.results["idt_B"] = fake[count:].detach()

    def contrast(self, sources: list[Tensor], fake: Tensor, mirrored: bool) -> tuple[Tensor, tuple]:
        """PatchNCE of each image and its translation, mean over patches and layers: (B or 2B,).

        The caller keeps the second value until the update is over: it lies in the memory of `beside_sources`,
        and the backward pass reads it on another stream (`SideStream`).

        Two autocast contexts: weight casts cached under no_grad would be reused later, without gradient.
        """
        with self.beside_sources, self.autocast():
            sources = [self.prepare_features(n, features) for n, features in enumerate(sources)]
            chosen = [self.choose_patches(n, features) for n, features in enumerate(sources)]
            with torch.no_grad():
                patches = [selection.route(f) for selection, f in zip(chosen, sources, strict=True)]
                keys = self.netF.of_layers(patches)  # (B, P, D) of each layer
        with self.autocast():
            targets = self.encode(fake)
            self.beside_sources.join()
            targets = [self.prepare_features(n, f.flip(3) if mirrored else f) for n, f in enumerate(targets)]
            patches = [selection.route(f) for selection, f in zip(chosen, targets, strict=True)]
            return self.patchnce.of_layers(self.netF.of_layers(patches), keys).mean(0), (chosen, keys)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Encoder features at `--nce_layers` of images of one domain, or of both stacked."""
        if self.opt.normG == "batch" and self.contrast_B:  # each domain has its own batch statistics
            domains = [self.netG.encode(domain, self.opt.nce_layers) for domain in images.chunk(2)]
            return [torch.cat(features) for features in zip(*domains, strict=True)]
        return self.netG.encode(images, self.opt.nce_layers)

    def prepare_features(self, number: int, features: Tensor) -> Tensor:
        """Features (B, C, H, W) of the `number`-th tapped layer, as patches are taken from them."""
        return features

    def choose_patches(self, number: int, features: Tensor) -> PatchSelection:
        """Random positions, the same for all images of a domain; A's are drawn before B's."""
        b, _, h, w = features.shape
        domains = 1 + self.contrast_B
        drawn = [
            patch_sampler.random_locations(h * w, self.opt.num_patches, features.device)
            for _ in range(domains)
        ]
        return PatchSelection(torch.stack(drawn).repeat_interleave(b // domains, 0))


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
