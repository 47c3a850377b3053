"""CUT: contrastive unpaired translation (Park et al., ECCV 2020); the step that QS-Attn and FastCUT share.

Patches of an image are contrasted with those of its translation. `choose_patches` decides which: random ones
here, those of least attention entropy in `models/qs_model.py`. Shapes: B images, C channels, P patches, D
embedding width.
"""

from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models import build, patch_sampler
from models.base_model import BaseModel, require_same_channels
from models.patch_sampler import PatchHeads, PatchSelection
from models.patchnce import PatchNCELoss
from models.qs_attn import QuerySelection
from models.sides import OneSidedModel
from models.speed.step_graph import SideStream
from util.arguments import integer, layer_list, real_number
from util.errors import UserError

Selection = PatchSelection | QuerySelection
LAYERS = {"type": layer_list, "scope": "fixed", "shown": "0,4,8,12,16; U-Nets 0,1,2,3,4"}
HEADS = ("mlp_sample", "sample")


class ContrastModel(BaseModel):
    """Chooses patches at `--nce_layers` of the sources, and embeds them in sources and translations."""

    domains_in_batch = 1  # of features; each domain draws positions of its own

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        width = {"type": integer(1), "only": {"netF": HEADS[:1]}, "scope": "fixed"}
        add("--lambda_NCE", 1.0, "weight of the contrastive loss", type=real_number(0))
        add("--nce_layers", [0, 4, 8, 12, 16], "generator layers contrasted; two-sided 4,8,12,16", **LAYERS)
        add("--netF", "mlp_sample", "heads of the features; sample: none", choices=HEADS, scope="fixed")
        add("--netF_nc", 256, "width of the heads", **width)
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

    def choose_patches(self, number: int, features: Tensor) -> Selection:
        """Random positions of features (B, C, H, W), the same for all images of a domain; A's come first."""
        b, _, h, w = features.shape
        drawn = [
            patch_sampler.random_locations(h * w, self.opt.num_patches, features.device)
            for _ in range(self.domains_in_batch)
        ]
        return PatchSelection(torch.stack(drawn).repeat_interleave(b // self.domains_in_batch, 0))

    def prepared(self, features: Sequence[Tensor]) -> list[Tensor]:
        """`prepare_features` of every tapped layer."""
        return [self.prepare_features(number, of_layer) for number, of_layer in enumerate(features)]

    @staticmethod
    def embed(head: PatchHeads, chosen: Sequence[Selection], features: Sequence[Tensor]) -> list[Tensor]:
        """Unit vectors (B, P, D) of the chosen patches of each tapped layer."""
        patches = [selection.route(f) for selection, f in zip(chosen, features, strict=True)]
        return [head(number, of_layer) for number, of_layer in enumerate(patches)]


class CUTModel(ContrastModel, OneSidedModel):
    """`--model cut`: G translates A to B, D judges B, the heads F embed patches. The loss of G and F is

        lambda_GAN GAN(D, G(a)) + lambda_NCE (PatchNCE(a, G(a)) + PatchNCE(b, G(b))) / 2

    with PatchNCE between features of an image and of its translation, mean over patches and layers.
    """

    network_names = ("G", "D", "F")
    groups = {"D": ("D",), "G": ("G", "F")}
    headline = ("G", "NCE")
    visual_names = ("real_A", "fake_B", "real_B", "idt_B")
    further: tuple[str, ...] = ()  # names of what `further_losses` returns

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        add("--nce_idt", True, "contrast B with its own translation too")
        add("--flip_equivariance", False, "mirror the input in half of the steps, and the features back")

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        if opt.lambda_NCE > 0:
            why = "the contrastive loss encodes translations as sources: give --lambda_NCE 0"
            require_same_channels(opt, why)

    @classmethod
    def capture_obstacle(cls, opt: Namespace) -> str | None:
        if opt.flip_equivariance:
            return "--cuda_graph cannot capture --flip_equivariance, which draws a number on the host"
        return None

    def __init__(self, opt: Namespace):
        self.contrast_B = opt.isTrain and opt.nce_idt and opt.lambda_NCE > 0  # the half PatchNCE(b, G(b))
        super().__init__(opt)
        if opt.isTrain:
            self.domains_in_batch = 1 + self.contrast_B
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
        return ["G_GAN", "D_real", "D_fake", "G", "NCE"] + ["NCE_Y"] * self.contrast_B + [*self.further]

    def training_step(self) -> None:
        """Translate [A; B] and keep the encoder's features of both; update D; update G and F.

        D's update, the choice of patches and the encoder's pass over the translations do not depend on each
        other: on CUDA they run on streams of their own, and so do their backward passes.
        """
        opt, losses, count = self.opt, self.losses, len(self.batch["A"])
        real = torch.cat([self.batch["A"], self.batch["B"]]) if self.contrast_B else self.batch["A"]
        with self.autocast():
            mirrored = opt.flip_equivariance and torch.rand(()).item() < 0.5
            fake, sources = self.generate(real.flip(3) if mirrored else real)
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
        losses.update(self.further_losses(real, fake))
        losses["G"] = sum((losses[name] for name in self.further), losses["G_GAN"] + loss_NCE)
        self.update("G", losses["G"], [name for name in self.loss_names if not name.startswith("D_")])
        self.freeze("D", False)
        self.results = {"fake_B": fake[:count].detach()}
        if self.contrast_B:
            self.results["idt_B"] = fake[count:].detach()

    def further_losses(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """A subclass's own terms of the loss of G and F, weighted, under the names in `further`.

        `real`, `fake`: A and its translation, with `--nce_idt` those of B behind them, (B or 2B, C, H, W).
        """
        return {}

    def contrast(self, sources: list[Tensor], fake: Tensor, mirrored: bool) -> tuple[Tensor, tuple]:
        """PatchNCE of each image and its translation, mean over patches and layers: (B or 2B,).

        The caller keeps the second value until the update is over: it lies in the memory of `beside_sources`,
        and the backward pass reads it on another stream (`SideStream`).
        """
        # Two autocast contexts: weight casts cached under no_grad would be reused later, without gradient.
        with self.beside_sources, self.autocast():
            sources = self.prepared(sources)
            chosen = [self.choose_patches(number, features) for number, features in enumerate(sources)]
            with torch.no_grad():
                keys = self.embed(self.netF, chosen, sources)
        with self.autocast():
            targets = self.encode(fake)
            self.beside_sources.join()
            targets = self.prepared([features.flip(3) for features in targets] if mirrored else targets)
            queries = self.embed(self.netF, chosen, targets)
            return self.patchnce.of_layers(queries, keys).mean(0), (chosen, keys)

    def generate(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Translations of images (B or 2B, C, H, W), and their features at `--nce_layers`."""
        return self.netG(images, self.opt.nce_layers)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Encoder features at `--nce_layers` of images of one domain, or of both stacked."""
        if self.opt.normG == "batch" and self.contrast_B:  # each domain has its own batch statistics
            domains = [self.netG.encode(domain, self.opt.nce_layers) for domain in images.chunk(2)]
            return [torch.cat(features) for features in zip(*domains, strict=True)]
        return self.netG.encode(images, self.opt.nce_layers)


class FastCUTModel(CUTModel):
    """`--model fastcut`: CUT's light form, without identity term, trained for half as long."""

    defaults = {"lambda_NCE": 10.0, "nce_idt": False, "flip_equivariance": True}
    defaults |= {"n_epochs": 150, "n_epochs_decay": 50}
