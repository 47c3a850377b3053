"""PatchNCE, the contrastive loss between patches of one image (Park et al., ECCV 2020, eq. 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import full


class PatchNCELoss(nn.Module):
    """-log( exp(q_p.k_p / T) / sum_m exp(q_p.k_m / T) ): patch p of the translation finds its source's.

    Negatives are the other patches of the same image. The keys are constants: no gradient flows into them.
    """

    def __init__(self, temperature: float = 0.07):
        super().__init__()
        self.temperature = temperature

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Losses (B, P) of unit vectors: `queries` (B, P, D) of translations, `keys` (B, M, D) of sources.

        Query p finds key p; the others of the M >= P keys are negatives.
        """
        # In float32: 1/T = 14 would amplify bfloat16 rounding to about 0.06.
        with torch.autocast(queries.device.type, enabled=False):
            logits = full(queries) @ full(keys.detach()).transpose(1, 2) / self.temperature  # (B, P, M)
            positives = torch.arange(queries.shape[1], device=logits.device).expand(logits.shape[:2])
            # as rows: with classes along the second of three axes CUDA's kernel is 40 times slower
            losses = F.cross_entropy(logits.flatten(0, 1), positives.flatten(), reduction="none")
            return losses.view(positives.shape)

    def of_layers(self, queries: list[Tensor], keys: list[Tensor]) -> Tensor:
        """Mean losses (N, B) by layer and image; one computation where all layers have as many patches."""
        count = len(keys)
        if len({of_layer.shape for of_layer in keys}) == 1:
            queries, keys = [torch.cat(queries)], [torch.cat(keys)]
        means = [self(q, k).mean(1) for q, k in zip(queries, keys, strict=True)]
        return torch.cat(means).view(count, -1)
