"""The textbook step of FSeSim and LSeSim, in the released code's order.

It shares no shortcut with `models/sesim_model.py`: each update takes its images through VGG-16 anew, D judges
translations and real images in separate passes, and the window of keys around each query is cropped from the
map, query by query.

Shapes as in `models/spatial_correlation.py`: B images, C channels, N queries, M keys of a query.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models import patch_sampler
from models.gan_loss import gradient_penalty
from models.spatial_correlation import contrastive_loss, correlation_loss
from models.textbook.base import TextbookStep


class TextbookSeSim(TextbookStep):
    """FSeSim's step, and with `--learned_attn` LSeSim's."""

    def optimize_parameters(self) -> None:
        """One training step on the model's current batch."""
        opt, batch = self.opt, self.model.batch
        real_A, real_B = batch["A"], batch["B"]
        fake_B = self.networks["G"](real_A)

        if opt.learned_attn:
            trios = [(real_A, fake_B.detach(), real_B)]
            if opt.augment:
                trios.append((real_A, batch["A_aug"], batch["B_aug"]))
            self.freeze("F", False)
            self.update("F", self.F_loss(trios))

        self.freeze("D", False)
        self.update("D", self.D_loss(fake_B, real_B))

        self.freeze("D")
        self.freeze("F")
        self.update("G", self.G_loss(real_A, fake_B))

    def F_loss(self, trios: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """The contrast of (image, other view of it, other image), each (B, 3, H, W)."""
        source, target, other = (torch.cat(images) for images in zip(*trios, strict=True))

        def contrast(source: Tensor, target: Tensor, other: Tensor) -> Tensor:
            return contrastive_loss(source, target, other, self.opt.T)

        self.losses["spatial"] = self.mean_over_layers(contrast, source, target, other.rot90(2, (2, 3)))
        return self.losses["spatial"]

    def D_loss(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        """Half the sum of D's loss on the translation and on a real B."""
        netD, gan_loss = self.networks["D"], self.model.gan_loss
        fake_B = self.model.pool(fake_B)
        self.losses["D_fake"] = gan_loss(netD(fake_B), False)
        self.losses["D_real"] = gan_loss(netD(real_B), True)
        self.losses["D_A"] = (self.losses["D_fake"] + self.losses["D_real"]) / 2
        if self.opt.gan_mode == "wgangp":
            self.losses["D_A"] = self.losses["D_A"] + gradient_penalty(netD, real_B, fake_B)
        return self.losses["D_A"]

    def G_loss(self, real_A: Tensor, fake_B: Tensor) -> Tensor:
        """lambda_GAN * GAN(G(x)) + lambda_spatial * S(x, G(x))."""
        opt = self.opt

        def distance(source: Tensor, target: Tensor) -> Tensor:
            return correlation_loss(source, target, opt.loss_mode, opt.use_norm)

        self.losses["G_GAN"] = opt.lambda_GAN * self.model.gan_loss(self.networks["D"](fake_B), True)
        self.losses["G_s"] = opt.lambda_spatial * self.mean_over_layers(distance, real_A, fake_B)
        self.losses["G"] = self.losses["G_GAN"] + self.losses["G_s"]
        return self.losses["G"]

    def mean_over_layers(self, loss: Callable[..., Tensor], *images: Tensor) -> Tensor:
        """The loss of the images' self-similarity maps, at new queries for each layer."""
        sides = [self.model.vgg(image) for image in images]
        losses = []
        for number, layer in enumerate(zip(*sides, strict=True)):
            height, width = layer[0].shape[2:]
            count, device = self.opt.patch_nums, layer[0].device
            queries = None
            if count > 0:
                queries = patch_sampler.random_locations(height * width, count, device).tolist()
            maps = [self.similarity(number, features, queries) for features in layer]
            losses.append(loss(*maps))
        return sum(losses) / len(losses)

    def similarity(self, number: int, features: Tensor, queries: list[int] | None) -> Tensor:
        """Self-similarity maps (B, N, M) of the features (B, C, H, W) of the `number`-th layer."""
        if self.opt.learned_attn:
            features = self.networks["F"].get_submodule(f"conv_{number}")(features)
        return plain_similarity(features, queries, self.opt.patch_size, self.opt.use_norm)


def plain_similarity(features: Tensor, queries: list[int] | None, window: int, use_norm: bool) -> Tensor:
    """Self-similarity maps (B, N, M) of features (B, C, H, W) by definition.

    `queries` are row * W + column, None for all positions.
    """
    c, h, w = features.shape[1:]
    features = features - features.mean((2, 3), keepdim=True)
    if use_norm:
        features = F.normalize(features, dim=1)
    vectors = features.flatten(2)  # (B, C, L)
    chosen = vectors if queries is None else vectors[:, :, queries]  # (B, C, N)
    if queries is None or window >= h or window >= w:
        scores = torch.einsum("bcn,bcm->bnm", chosen, vectors)
    else:
        keys = torch.stack([keys_around(features, query, window) for query in queries], 1)  # (B, N, C, M)
        scores = torch.einsum("bcn,bncm->bnm", chosen, keys)
    return scores if use_norm else torch.tanh(scores / (10 * c))


def keys_around(features: Tensor, query: int, window: int) -> Tensor:
    """The window of keys of one query, cut out of features (B, C, H, W) and inside of them: (B, C, M)."""
    h, w = features.shape[2:]
    row, column = divmod(query, w)
    top = min(max(row - window // 2, 0), h - window)
    left = min(max(column - window // 2, 0), w - window)
    return features[:, :, top : top + window, left : left + window].flatten(2)
