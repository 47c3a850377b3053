"""The adversarial objectives behind `--gan_mode`, as functions of the discriminator's scores."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers import full
from util import distributed

Judge = Callable[[Tensor], Tensor]  # a discriminator: images (B, C, H, W) -> scores (B, 1, h, w)

# mode -> loss of scores that should look real (True) or fake (False); a scalar
GAN_LOSSES: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "lsgan": lambda scores, real: (scores - float(real)).square().mean(),
    "vanilla": lambda scores, real: F.binary_cross_entropy_with_logits(
        scores, torch.full_like(scores, float(real))
    ),
    "wgangp": lambda scores, real: -scores.mean() if real else scores.mean(),
    "hinge": lambda scores, real: F.relu(1 - scores if real else 1 + scores).mean(),
    "nonsaturating": lambda scores, real: F.softplus(-scores if real else scores).mean(),
}


def gan_loss(mode: str, scores: Tensor, real: bool) -> Tensor:
    """One of `GAN_LOSSES`, of scores also in half precision."""
    return GAN_LOSSES[mode](full(scores), real)


def discriminator_loss(
    mode: str, judge: Judge, batches: Sequence[tuple[Tensor, bool]], mixes: bool
) -> tuple[Tensor, list[Tensor]]:
    """Half the sum of D's terms of two batches of images, one real (True) and one fake; and the terms."""
    images = [batch for batch, _ in batches]
    if mixes or images[0].shape != images[1].shape:
        scores = [judge(batch) for batch in images]
    else:
        scores = judge(torch.cat(images)).chunk(2)
    terms = [gan_loss(mode, of_batch, real) for of_batch, (_, real) in zip(scores, batches, strict=True)]
    loss = (terms[0] + terms[1]) * 0.5
    if mode == "wgangp":
        by_kind = {real: batch for batch, real in batches}
        loss = loss + gradient_penalty(judge, by_kind[True], by_kind[False])
    return loss, terms


def random_shares(count: int, device: torch.device | str) -> Tensor:
    """Shares (count, 1, 1, 1) in [0, 1) of real images in mixtures. They are drawn here alone."""
    return torch.rand(count, 1, 1, 1, device=device)


def gradient_penalty(judge: Judge, real: Tensor, fake: Tensor, weight: float = 10.0) -> Tensor:
    """WGAN-GP (Gulrajani et al., 2017, eq. 3): weight * (|dD/dx| - 1)^2 at random points between both."""
    shares = random_shares(len(real) * distributed.world_size(), real.device)  # of all processes
    share = shares[distributed.rank() * len(real) :][: len(real)]
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(judge(between).sum(), between, create_graph=True)
    return weight * (slope.flatten(1).norm(dim=1) - 1).square().mean()
