"""QS-Attn (Hu et al., CVPR 2022): CUT whose deeper layers choose their patches by attention entropy and route them through it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models.cut_model import CUTModel
from models.patch_sampler import PatchSelection
from models.qs_attn import QuerySelection, select_queries
from models.qs_released import select_queries_released


class QSModel(CUTModel):
    """CUT's step with query-selected attention on `--qs_layers`, random positions on the other `--nce_layers`."""

    def prepare_features(self, number: int, features: Tensor) -> Tensor:
        """Large maps of QS-Attn layers averaged down to `--qs_pool` a side (the supplement's model B)."""
        side = self.opt.qs_pool
        if side and self.opt.nce_layers[number] in self.opt.qs_layers and max(features.shape[2:]) > side:
            return F.adaptive_avg_pool2d(features, [min(side, length) for length in features.shape[2:]])
        return features

    def choose_patches(self, number: int, features: Tensor) -> PatchSelection | QuerySelection:
        """The `--num_patches` queries of least entropy in each image, with their attention."""
        if self.opt.nce_layers[number] not in self.opt.qs_layers:
            return super().choose_patches(number, features)
        select = select_queries_released if self.opt.qs_variant == "released" else select_queries
        return select(features, self.opt.QS_mode, self.opt.num_patches, self.opt.qs_window)
