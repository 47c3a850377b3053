"""CUT: contrastive unpaired translation (Park et al., ECCV 2020), the step that QS-Attn and FastCUT share.

One step generates from [A; B] in one pass and keeps the encoder's features of the real images; D sees the translation
and a real B in one pass; then G and the heads F learn from D's verdict and from PatchNCE between real and translated
features. Which patches enter PatchNCE is `choose_patches`: at random here, by attention entropy in `models/qs_model.py`.
"""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from models import patch_sampler
from models.build import build_discriminator, build_generator, build_heads
from models.gan_loss import GAN_LOSSES, gradient_penalty
from models.patch_sampler import PatchSelection
from models.patchnce import PatchNCELoss
from models.speed.accelerator import Accelerator
from models.speed.streams import SideStream
from models.training.finite_guard import FiniteGuard
from models.training.image_pool import ImagePool
from models.training.schedules import make_scheduler
from util.device import get_device
from util.distributed import average_gradients
from util.errors import UserError


class Source(NamedTuple):
    """A tapped layer of the real images: the patches chosen, and the keys (B, P, D) that PatchNCE compares with."""

    selection: PatchSelection
    keys: Tensor


class CUTModel:
    """Networks, optimisers and the training step; with `opt.isTrain` False the generator alone."""

    def __init__(self, opt: Namespace):
        self.opt = opt
        self.device = get_device(opt.gpu_ids)
        self.networks: dict[str, nn.Module] = {"G": build_generator(opt)}
        if opt.isTrain:
            self.networks["D"] = build_discriminator(opt)
            self.networks["F"] = build_heads(opt, self.netG)
        for net in self.networks.values():
            net.to(
                self.device, memory_format=torch.channels_last if opt.channels_last else torch.preserve_format
            )
        self.real_A: Tensor | None = None
        self.real_B: Tensor | None = None
        self.losses: dict[str, Tensor] = {}
        if opt.isTrain:
            self._prepare_training()
        self.accelerator = Accelerator(self)

    def _prepare_training(self) -> None:
        opt = self.opt
        self.contrast_B = opt.nce_idt and opt.lambda_NCE > 0  # the identity half of the loss, NCE(y, G(y))
        self.loss_names = ["G_GAN", "D_real", "D_fake", "G", "NCE"] + ["NCE_Y"] * self.contrast_B
        self.loss_names_G = [name for name in self.loss_names if not name.startswith("D_")]
        self.gan_loss = GAN_LOSSES[opt.gan_mode]
        self.patchnce = PatchNCELoss(opt.nce_T)
        self.pool = ImagePool(opt.pool_size)
        self.beside_D, self.beside_sources = SideStream(self.device), SideStream(self.device)
        self.guard = FiniteGuard(
            [*self.loss_names, "the gradient of D", "the gradient of G and F"], self.device
        )
        self.optimizers: dict[str, Optimizer] = {}
        for name, net in self.networks.items():
            if parameters := list(net.parameters()):  # F of `--netF sample` has none
                optimizer = Adam(parameters, lr=opt.lr, betas=(opt.beta1, opt.beta2), fused=True)
                optimizer.found_inf = self.guard.found
                self.optimizers[name] = optimizer
        schedule = (opt.lr_policy, opt.n_epochs, opt.n_epochs_decay, opt.lr_decay_iters, opt.epoch_count)
        self.schedulers = {
            name: make_scheduler(optimizer, *schedule) for name, optimizer in self.optimizers.items()
        }

    @property
    def netG(self) -> nn.Module:
        return self.networks["G"]

    @property
    def netD(self) -> nn.Module:
        return self.networks["D"]

    @property
    def netF(self) -> nn.Module:
        return self.networks["F"]

    def set_input(self, batch: dict) -> None:
        """Take a batch: images "A" and "B" (B, C, H, W) in [-1, 1] (without "B" when only translating) and their paths."""
        self.real_A = self._place(batch["A"])
        self.real_B = self._place(batch["B"]) if "B" in batch else None
        if self.opt.isTrain and self.real_A.shape[2:] != self.real_B.shape[2:]:
            (h_A, w_A), (h_B, w_B) = self.real_A.shape[2:], self.real_B.shape[2:]
            raise UserError(
                f"an image of A has {w_A} x {h_A} pixels and the one of B beside it {w_B} x {h_B}, but a step needs one size: use a "
                "--preprocess that crops, such as resize_and_crop"
            )
        self.image_paths = list(batch.get("A_paths", [])) + list(batch.get("B_paths", []))

    def _place(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.opt.channels_last else torch.contiguous_format
        return images.to(self.device, memory_format=layout)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Convolutions and heads in bfloat16 with `--precision bf16`; what must be float32 says so where it is computed."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.opt.precision == "bf16")

    def optimize_parameters(self) -> None:
        """One training step on the current batch, compiled and captured as the options say."""
        self.accelerator.run(self.training_step)

    def training_step(self) -> None:
        """One training step on the current batch: forward, D's update, G's and F's update.

        D's update, the choice of patches in the real images, and the pass over the translations need nothing of each other,
        so on CUDA they run side by side, and their parts of the backward pass do too.
        """
        self.guard.begin_step()
        with self.autocast():
            self.forward()
        with self.beside_D:
            loss_GAN = self._step_D()
        nce = self._contrast()
        self.beside_D.join()
        loss_G = self.compute_G_loss(loss_GAN, nce)
        self._update(loss_G, "G", "F", losses=self.loss_names_G, gradient="the gradient of G and F")
        self.netD.requires_grad_(True)

    def _step_D(self) -> Tensor:
        """Update D; what it then says of the translation is G's adversarial loss."""
        with self.autocast():
            loss_D = self.compute_D_loss()
        self._update(loss_D, "D", losses=("D_real", "D_fake"), gradient="the gradient of D")
        self.netD.requires_grad_(False)
        with self.autocast():
            return self.compute_GAN_loss()

    def _contrast(self) -> Tensor:
        """The contrastive losses of the images (B or 2B,)."""
        if self.opt.lambda_NCE == 0:
            return self.fake.new_zeros(len(self.real_A), dtype=torch.float32)
        # contexts apart: autocast would hand the heads' weights, cast without gradient for the sources, to the queries too
        with self.beside_sources, self.autocast():
            sources = self.contrast_sources()
        with self.autocast():
            fake_features = self.encode(self.fake)
            self.beside_sources.join()
            return self.compute_NCE_losses(sources, fake_features)

    def forward(self) -> None:
        """Translate A, and B too where the identity term wants it; keep the encoder's features of the real images."""
        real = torch.cat([self.real_A, self.real_B]) if self.contrast_B else self.real_A  # (B or 2B, C, H, W)
        self.mirrored = self.opt.flip_equivariance and torch.rand(()).item() < 0.5
        self.fake, self.real_features = self.netG(
            real.flip(3) if self.mirrored else real, self.opt.nce_layers
        )
        # generating saw mirrored images, statistics of both domains, or another dropout mask
        if self.mirrored or self.opt.normG == "batch" or not self.opt.no_dropout:
            self.real_features = self.encode(real)
        self.fake_B = self.fake[: len(self.real_A)]
        self.idt_B = self.fake[len(self.real_A) :] if self.contrast_B else None

    def encode(self, images: Tensor) -> list[Tensor]:
        """Encoder features at `--nce_layers` of images of one domain, or of both stacked."""
        if self.opt.normG == "batch" and self.contrast_B:  # batch statistics are a domain's own
            domains = [self.netG.encode(domain, self.opt.nce_layers) for domain in images.chunk(2)]
            return [torch.cat(features) for features in zip(*domains, strict=True)]
        return self.netG.encode(images, self.opt.nce_layers)

    def compute_D_loss(self) -> Tensor:
        """Half the sum of D's terms for the translation and for a real B."""
        fake, real = self.pool.query(self.fake_B), self.real_B
        if self.opt.normD == "batch":
            scores_fake, scores_real = self.netD(fake), self.netD(real)
        else:
            scores_fake, scores_real = self.netD(torch.cat([fake, real])).chunk(2)
        self.losses["D_fake"] = self.gan_loss(scores_fake.float(), False)
        self.losses["D_real"] = self.gan_loss(scores_real.float(), True)
        loss = (self.losses["D_fake"] + self.losses["D_real"]) * 0.5
        if self.opt.gan_mode == "wgangp":
            loss = loss + gradient_penalty(self.netD, real, fake)
        return loss

    def compute_GAN_loss(self) -> Tensor:
        """lambda_GAN * GAN(G(x))."""
        return self.opt.lambda_GAN * self.gan_loss(self.netD(self.fake_B).float(), True)

    def compute_G_loss(self, loss_GAN: Tensor, nce: Tensor) -> Tensor:
        """lambda_GAN * GAN(G(x)) + (NCE(x, G(x)) + NCE(y, G(y))) / 2, of the images' NCE losses (B or 2B,)."""
        self.losses["G_GAN"] = loss_GAN
        self.losses["NCE"] = loss_NCE = nce[: len(self.real_A)].mean()
        if self.contrast_B:
            self.losses["NCE_Y"] = nce[len(self.real_A) :].mean()
            loss_NCE = (self.losses["NCE"] + self.losses["NCE_Y"]) * 0.5
        self.losses["G"] = loss_GAN + loss_NCE
        return self.losses["G"]

    def contrast_sources(self) -> list[Source]:
        """Of each tapped layer of the real images, the patches chosen and their embeddings."""
        sources = []
        for number, features in enumerate(self.real_features):
            features = self.prepare_features(number, features)
            selection = self.choose_patches(number, features)
            with torch.no_grad():
                sources.append(Source(selection, self.netF(number, selection.route(features))))
        return sources

    def compute_NCE_losses(self, sources: list[Source], fake_features: list[Tensor]) -> Tensor:
        """lambda_NCE * PatchNCE of each image against its translation, mean over patches and layers: (B or 2B,)."""
        queries = []  # (B, P, D) of each layer
        for number, (source, target) in enumerate(zip(sources, fake_features, strict=True)):
            target = self.prepare_features(number, target.flip(3) if self.mirrored else target)
            queries.append(self.netF(number, source.selection.route(target)))
        keys = [source.keys for source in sources]
        if len({of_layer.shape for of_layer in keys}) == 1:  # as many patches everywhere: all layers at once
            layers = [self.patchnce(torch.cat(queries), torch.cat(keys)).mean(1).view(len(keys), -1)]
        else:
            layers = [self.patchnce(q, k).mean(1)[None] for q, k in zip(queries, keys, strict=True)]
        return self.opt.lambda_NCE * torch.cat(layers).mean(0)

    def prepare_features(self, number: int, features: Tensor) -> Tensor:
        """The features (B, C, H, W) of the `number`-th tapped layer as patches are chosen and taken from them."""
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

    def _update(self, loss: Tensor, *names: str, losses: Sequence[str], gradient: str) -> None:
        """Descend `loss` in the named networks, unless it or its gradient is not finite."""
        optimizers = [self.optimizers[name] for name in names if name in self.optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        parameters = [p for name in names for p in self.networks[name].parameters()]
        average_gradients(parameters)
        self.guard.check({name: self.losses[name] for name in losses}, gradient, parameters)
        for optimizer in optimizers:
            optimizer.step()

    @torch.inference_mode()
    def translate(self) -> Tensor:
        """Images (B, C, H, W) of A as B."""
        with self.autocast():
            return self.netG(self.real_A).float()

    def get_current_losses(self) -> dict[str, float]:
        """The losses of the last step, taken off the device in one transfer."""
        values = torch.stack([self.losses[name].detach() for name in self.loss_names]).tolist()
        return dict(zip(self.loss_names, values, strict=True))

    def get_current_visuals(self) -> dict[str, Tensor]:
        """The images of the last step by label, each (B, C, H, W) in [-1, 1]."""
        visuals = {"real_A": self.real_A, "fake_B": self.fake_B, "real_B": self.real_B}
        if self.idt_B is not None:
            visuals["idt_B"] = self.idt_B
        return {label: images.detach().float() for label, images in visuals.items()}

    @property
    def learning_rate(self) -> float:
        return float(self.optimizers["G"].param_groups[0]["lr"])

    def update_learning_rate(self, mean_loss_G: float) -> None:
        """Step the schedules at the end of an epoch; a plateau one looks at the epoch's mean loss of G."""
        for scheduler in self.schedulers.values():
            scheduler.optimizer._opt_called = (
                True  # else torch warns where a run resumes at the very end of an epoch
            )
            scheduler.step(*([mean_loss_G] if self.opt.lr_policy == "plateau" else []))

    def training_state(self) -> dict:
        """Everything a resume needs of the model: tensors and plain numbers only."""
        parts: dict[str, dict[str, Callable]] = {
            "networks": self.networks,
            "optimizers": self.optimizers,
            "schedulers": self.schedulers,
        }
        state = {
            part: {name: item.state_dict() for name, item in items.items()} for part, items in parts.items()
        }
        return {**state, "pool": self.pool.images}

    def load_training_state(self, state: dict) -> None:
        """Continue from `training_state()`."""
        for part in ("networks", "optimizers", "schedulers"):
            for name, item in getattr(self, part).items():
                item.load_state_dict(state[part][name])
        self.pool.images = [image.to(self.device) for image in state["pool"]]
