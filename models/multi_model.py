"""Many domains: one generator that translates every image into every domain, by CUT or QS-Attn.

The split of the generator and D's channel for each domain are StarGAN v2's (Choi et al., CVPR 2020). A batch
holds sources "A" of the domains "A_domain" and images "B" of other domains "B_domain", which are the targets.
"""

from argparse import ArgumentTypeError, Namespace

import numpy as np
import torch
from torch import Tensor, nn

from data.folders import find_domains
from models import build
from models.base_model import BaseModel
from models.cut_model import CUTModel
from models.qs_model import QSModel
from util.arguments import integer
from util.errors import UserError
from util.images import to_uint8


def domain_list(text: str) -> list[str]:
    """Comma-separated names of folders, at least two, each once; or nothing."""
    names = [name.strip() for name in text.split(",")] if text else []
    if names and (len(set(names)) != len(names) or len(names) < 2 or not all(names) or "/" in text):
        raise ArgumentTypeError(f"takes at least two names of folders such as cat,dog,wild, not {text!r}")
    return names


class ManyDomains(BaseModel):
    """What models with many domains share: their names, the targets of a batch, a row of pictures."""

    defaults = {"dataset_mode": "multi"}
    lacking = ("direction",)
    translation_options = ("domains",)

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        names = {"type": domain_list, "shown": "the folders of train/", "scope": "fixed"}
        add("--domains", [], "names of the domains", **names)
        add("--own_domain", False, "an image may be translated to its own domain; of stargan true")

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        opt.domains = opt.domains or find_domains(opt.dataroot, opt.phase)

    def targets(self, images: Tensor) -> Tensor:
        """The target of each of images (B or 2B, C, H, W): that of the batch, of A and of B alike."""
        domains = self.batch["B_domain"]
        return domains.repeat(len(images) // len(domains))

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """The batch's first image and its translation to each domain."""
        net, image, count = self.networks["G"], self.batch["A"][:1], len(self.opt.domains)
        net.eval()  # pictures move no running statistics
        with self.autocast():
            row = net(image.expand(count, -1, -1, -1), torch.arange(count, device=self.device)).float()
        net.train()
        labels = ["real_A", *(f"to_{name}" for name in self.opt.domains)]
        return {label: to_uint8(one) for label, one in zip(labels, [image, *row.split(1)], strict=True)}


class ContrastiveDomains(ManyDomains):
    """The conditional generator and D of `cut_multi` and `qs_multi`, in CUT's step."""

    defaults = {**ManyDomains.defaults, "n_iterations": 400_000, "n_iterations_decay": 400_000}

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        add("--domain_dim", 64, "numbers that describe a domain to G", type=integer(1), scope="fixed")

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        if opt.netG.startswith("unet") or opt.normG == "none":
            problem = f"--netG {opt.netG} with --normG {opt.normG} has no norms that can be told a target"
            raise UserError(f"{problem}: give a resnet, and --normG instance or batch")
        if opt.netD not in ("basic", "n_layers"):
            raise UserError(f"--netD {opt.netD} has no channels for domains: give basic or n_layers")
        if opt.pool_size:
            raise UserError("--pool_size keeps translations without their targets: give --pool_size 0")
        with torch.device("meta"):
            last = build.build_generator(opt, domains=len(opt.domains)).last_encoder_layer
        if beyond := [layer for layer in opt.nce_layers if layer > last]:
            found = f"--nce_layers names layer {beyond[0]} of the decoder, which depends on the target"
            raise UserError(f"{found}: the last one that works is {last}")

    def build_network(self, name: str) -> nn.Module:
        if name == "G":
            return build.build_generator(self.opt, domains=len(self.opt.domains))
        if name == "D":
            return build.build_discriminator(self.opt, scores=len(self.opt.domains))
        return super().build_network(name)

    def generate(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.netG(images, self.targets(images), self.opt.nce_layers)

    def judge(self, images: Tensor) -> Tensor:
        scores, targets = self.netD(images), self.targets(images)  # (B, N, h, w), (B,)
        return scores.gather(1, targets[:, None, None, None].expand(-1, 1, *scores.shape[2:]))


class CUTMultiModel(ContrastiveDomains, CUTModel):
    """`--model cut_multi`: random patches. With x of domain s, y of t, the loss of G and F is

    lambda_GAN GAN(D_t, G(x, t)) + lambda_NCE (PatchNCE(x, G(x, t)) + PatchNCE(y, G(y, t))) / 2
    """


class QSMultiModel(ContrastiveDomains, QSModel):
    """`--model qs_multi`: `cut_multi` with query-selected attention on `--qs_layers`."""
