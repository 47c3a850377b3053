"""The adversarial objectives behind `--gan_mode`, as functions of the discriminator's scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def gradient_penalty(netD: nn.Module, real: Tensor, fake: Tensor, weight: float = 10.0) -> Tensor:
    """WGAN-GP (Gulrajani et al., 2017, eq. 3): weight * (|dD/dx| - 1)^2 at random points between both."""
    share = torch.rand(real.shape[0], 1, 1, 1, device=real.device)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(netD(between).sum(), between, create_graph=True)
    return weight * (slope.flatten(1).norm(dim=1) - 1).square().mean()
