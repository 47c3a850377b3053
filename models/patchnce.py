"""PatchNCE, the contrastive loss between patches of one image (Park et al., ECCV 2020, eq. 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchNCELoss(nn.Module):
    """-log( exp(q_p.k_p / T) / sum_m exp(q_p.k_m / T) ): patch p of the translation finds its source's.

    Negatives are the other patches of the same image. The keys are constants: no gradient flows into them.
    """

    def __init__(self, temperature: float = 0.07):
        super().__init__()
        self.temperature = temperature

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Losses (B, P) of unit vectors (B, P, D): `queries` of the translation, `keys` of the source."""
        # In float32: 1/T = 14 would amplify bfloat16 rounding to about 0.06.
        with torch.autocast(queries.device.type, enabled=False):
            logits = queries.float() @ keys.detach().float().transpose(1, 2) / self.temperature  # (B, P, P)
            positives = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
            # as rows: with classes along the second of three axes CUDA's kernel is 40 times slower
            losses = F.cross_entropy(logits.flatten(0, 1), positives.flatten(), reduction="none")
            return losses.view(positives.shape)
