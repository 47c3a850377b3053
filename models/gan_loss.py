"""The adversarial objectives behind `--gan_mode`, as functions of the discriminator's scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import full
from util import distributed

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


def discriminator_terms(
    loss: Callable[[Tensor, bool], Tensor],
    netD: nn.Module,
    batches: Sequence[tuple[Tensor, bool]],
    one_pass: bool,
) -> list[Tensor]:
    """One of `GAN_LOSSES` for each batch of images, which are real (True) or fake.

    Batches of one shape go through the discriminator together if `one_pass`, else one by one in this order.
    """
    images = [batch for batch, _ in batches]
    one_pass = one_pass and len({batch.shape for batch in images}) == 1
    scores = netD(torch.cat(images)).chunk(len(images)) if one_pass else [netD(batch) for batch in images]
    return [loss(full(of_batch), real) for of_batch, (_, real) in zip(scores, batches, strict=True)]


def random_shares(count: int, device: torch.device | str) -> Tensor:
    """Shares (count, 1, 1, 1) in [0, 1) of real images in mixtures. They are drawn here alone."""
    return torch.rand(count, 1, 1, 1, device=device)


def gradient_penalty(netD: nn.Module, real: Tensor, fake: Tensor, weight: float = 10.0) -> Tensor:
    """WGAN-GP (Gulrajani et al., 2017, eq. 3): weight * (|dD/dx| - 1)^2 at random points between both."""
    shares = random_shares(len(real) * distributed.world_size(), real.device)  # of all processes
    share = shares[distributed.rank() * len(real) :][: len(real)]
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(netD(between).sum(), between, create_graph=True)
    return weight * (slope.flatten(1).norm(dim=1) - 1).square().mean()
