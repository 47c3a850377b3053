"""The released code's arithmetic of QS-Attn, to reproduce its numbers (`--qs_variant released`).

It differs from the method (`models/qs_attn.py`) in three ways:

- queries are ranked by the plain entropy -sum a log a in float32, in which most rows of real features tie;
- its local "window" of query i is made of k*k consecutive slices of C numbers out of all C*k*k numbers around
  i, channel by channel, so that no slice is the feature vector of any neighbour;
- its local routing pairs row c of the attention with channel c of the values, which needs N = C. With a
  larger batch than 1 it mixes images too; here each image is treated as in a batch of one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers import full
from models.qs_attn import QuerySelection
from util.errors import UserError

# mode -> the attention that ranks the positions, and the one that routes the chosen ones
RULES = {"global": ("global", "global"), "local": ("local", "local"), "local_global": ("local", "global")}


class ReleasedLocalSelection(QuerySelection):
    """A selection in windows, with the released code's exchange of queries and channels in `route`."""

    def route(self, features: Tensor) -> Tensor:
        """Features (B, C, H, W) through the chosen rows: (B, N, C), where N = C."""
        b, c, h, w = features.shape
        columns = F.unfold(full(features), self.window, padding=self.window // 2)  # (B, C*k*k, L)
        chosen = self.indices[:, None].expand(-1, columns.shape[1], -1)
        values = columns.gather(2, chosen).view(b, c, -1, self.indices.shape[1])  # (B, C, k*k, N)
        with torch.autocast(features.device.type, enabled=False):
            return torch.einsum("bcm,bcmn->bcn", self.attention, values)


def select_queries_released(features: Tensor, mode: str, num_queries: int, window: int = 7) -> QuerySelection:
    """As `models.qs_attn.select_queries`, by the released arithmetic; it holds the full attention matrix."""
    ranked_by, routed_by = RULES[mode]
    features = full(features)
    b, c, h, w = features.shape
    with torch.autocast(features.device.type, enabled=False):
        vectors = features.flatten(2).transpose(1, 2)  # (B, L, C)
        attention: dict[str, Tensor] = {}
        if "local" in RULES[mode]:
            columns = F.unfold(features, window, padding=window // 2)  # (B, C*k*k, L)
            keys = columns.transpose(1, 2).reshape(b, h * w, window * window, c)
            attention["local"] = torch.einsum("blc,blmc->blm", vectors, keys).softmax(-1)
        if "global" in RULES[mode]:
            attention["global"] = (vectors @ vectors.transpose(1, 2)).softmax(-1)
        entropy = torch.special.entr(attention[ranked_by].detach()).sum(-1)  # (B, L)
        indices = entropy.sort(dim=1, stable=True).indices[:, :num_queries]
        rows = attention[routed_by]
        rows = rows.gather(1, indices[:, :, None].expand(-1, -1, rows.shape[2]))
    if mode == "local":
        if indices.shape[1] != c:
            raise UserError(
                f"--qs_variant released with --QS_mode local pairs patches with channels; found {c} channels "
                f"and {indices.shape[1]} patches of {h} x {w}: change --num_patches or --qs_layers"
            )
        return ReleasedLocalSelection(indices, rows, window)
    return QuerySelection(indices, rows)
