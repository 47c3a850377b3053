"""What adversarial models share: networks, pools of translations, and the discriminators' part of the step.

A model with one generator has G, which translates A to B, and D, which judges B. One with two has G_A and
G_B, and as in CycleGAN's code D_A judges images of B (real_B against fake_B = G_A(A)), D_B images of A.
"""

from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data.transforms import crops
from models import build
from models.base_model import BaseModel, require_same_channels
from models.gan_loss import discriminator_loss, gan_loss
from util.arguments import real_number
from util.errors import UserError


class OneSidedModel(BaseModel):
    """A subclass adds what keeps a translation close to its source; D has the group "D"."""

    visual_names = ("real_A", "fake_B", "real_B")

    @classmethod
    def add_options(cls, add) -> None:
        add("--lambda_GAN", 1.0, "weight of the adversarial loss", type=real_number(0))

    def build_network(self, name: str) -> nn.Module:
        return {"G": build.build_generator, "D": build.build_discriminator}[name](self.opt)

    def build_memories(self) -> dict[str, nn.Module]:
        self.pool = ImagePool(self.opt.pool_size)
        return {"pool": self.pool} if self.opt.pool_size else {}

    @property
    def netG(self) -> nn.Module:
        return self.networks["G"]

    @property
    def netD(self) -> nn.Module:
        return self.networks["D"]

    def judge(self, images: Tensor) -> Tensor:
        """D's scores of images (B or 2B, C, H, W)."""
        return self.netD(images)

    def step_D(self, real: Tensor, fake: Tensor) -> Tensor:
        """Update and freeze D; return lambda_GAN times G's adversarial loss under the new D."""
        with self.autocast():
            loss_D = self.compute_D_loss(real, fake)
        self.update("D", loss_D, ["D_real", "D_fake"])
        self.freeze("D")
        with self.autocast():
            return self.opt.lambda_GAN * self.adversarial(fake)

    def compute_D_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Half the sum of D's terms for translations, or earlier ones from the pool, and for real images."""
        batches, mixes = [(self.pool(fake), False), (real, True)], build.discriminator_mixes(self.opt)
        loss, terms = discriminator_loss(self.opt.gan_mode, self.judge, batches, mixes)
        self.losses["D_fake"], self.losses["D_real"] = terms
        return loss

    def adversarial(self, fake: Tensor) -> Tensor:
        """G's loss of translations (B, C, H, W) under D."""
        return gan_loss(self.opt.gan_mode, self.judge(fake), True)


class TwoSidedModel(BaseModel):
    """A subclass adds its losses and the order of its step."""

    network_names = ("G_A", "G_B", "D_A", "D_B")
    groups = {"G": ("G_A", "G_B"), "D": ("D_A", "D_B")}

    @classmethod
    def translating(cls, opt: Namespace) -> tuple[str, ...]:
        """G_A in the direction of training, G_B in the other one."""
        return ("G_A",) if opt.direction == getattr(opt, "trained_direction", opt.direction) else ("G_B",)

    def __init__(self, opt: Namespace):
        if self.translating(opt) == ("G_B",):
            why = f"--direction {opt.direction} is not that of the training: train another run"
            require_same_channels(opt, why)
        super().__init__(opt)

    def build_network(self, name: str) -> nn.Module:
        opt = self.opt
        if name.startswith("G_"):
            return build.build_generator(opt, backwards=name == "G_B")
        return build.build_discriminator(opt, opt.output_nc if name == "D_A" else opt.input_nc)

    def build_memories(self) -> dict[str, nn.Module]:
        self.pools = {name: ImagePool(self.opt.pool_size) for name in ("D_A", "D_B")}
        return {f"pool_{name}": pool for name, pool in self.pools.items()} if self.opt.pool_size else {}

    def generate(
        self, name: str, source: Tensor, target: Tensor | None, layers: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """G(source), G(target) if there is one, and features of the source; in one pass where none mix."""
        net = self.networks[name]
        if target is None or self.opt.normG == "batch" or source.shape[2:] != target.shape[2:]:
            fake, features = net(source, layers)
            return fake, None if target is None else net(target), features
        both, features = net(torch.cat([source, target]), layers)
        fake, identity = both.split([len(source), len(target)])
        return fake, identity, [of_layer[: len(source)] for of_layer in features]

    def adversarial(self, name: str, fake: Tensor) -> Tensor:
        """The generators' loss of translations (B, C, H, W) under the discriminator `name`."""
        return gan_loss(self.opt.gan_mode, self.networks[name](fake), True)

    def discriminator_loss(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
        """Half the sum of the terms of real images and of translations from the pool."""
        batches, mixes = [(real, True), (self.pools[name](fake), False)], build.discriminator_mixes(self.opt)
        return discriminator_loss(self.opt.gan_mode, self.networks[name], batches, mixes)[0]

    def update_discriminators(self, fake_A: Tensor, fake_B: Tensor) -> None:
        """Update D_A and D_B on the real images of the batch and on translations."""
        self.freeze("D", False)
        with self.autocast():
            self.losses["D_A"] = self.discriminator_loss("D_A", self.batch["B"], fake_B)
            self.losses["D_B"] = self.discriminator_loss("D_B", self.batch["A"], fake_A)
        self.update("D", self.losses["D_A"] + self.losses["D_B"], ["D_A", "D_B"])


class ImagePool(nn.Module):
    """Keeps up to `size` images on the device; once full, half of the queries return a random earlier one.

    (Shrivastava et al., CVPR 2017.) Everything is computed on the device, so that a CUDA graph can hold a
    query. With size 0 queries return what they are given.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.zeros(size, 0, 0, 0))  # (size, C, H, W) from the first query on
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to show the discriminator in place of `images`; detached."""
        if self.size == 0:
            return images.detach()
        draws = torch.rand(len(images), device=images.device)
        places = torch.randint(self.size, (len(images),), device=images.device)
        return self.swap(images, draws, places)

    @torch.no_grad()
    def swap(self, images: Tensor, draws: Tensor, places: Tensor) -> Tensor:
        """A query with given random numbers, `draws` in [0, 1) and `places`, each (B,); images in order."""
        if self.images.shape[1:] != images.shape[1:]:  # at first, and where a resume has another --crop_size
            self.images = self.images.new_zeros(self.size, *images.shape[1:])
            self.count.zero_()
        shown = []
        for image, draw, place in zip(images.detach(), draws, places, strict=True):
            filling = self.count < self.size
            place = torch.where(filling, self.count, place).view(1)
            stored = self.images.index_select(0, place)[0]
            swapped = ~filling & (draw > 0.5)
            shown.append(torch.where(swapped, stored.to(image.dtype), image))
            kept = torch.where(filling | swapped, image.to(stored.dtype), stored)
            self.images.index_copy_(0, place, kept[None])
            self.count += filling
        return torch.stack(shown)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if (images := state_dict.get(f"{prefix}images")) is not None:
            self.images = self.images.new_zeros(self.size, *images.shape[1:])
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_pool(opt: Namespace) -> None:
    """UserError where `--pool_size` cannot serve."""
    if opt.pool_size and not crops(opt.preprocess):
        raise UserError(f"--pool_size {opt.pool_size} keeps images of one size: use a cropping --preprocess")
