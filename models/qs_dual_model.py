"""Two-sided QS-Attn: DCLGAN whose deeper layers choose patches by attention entropy and route them.

The QS-Attn supplement names bi-directional translation as untried and expected to work.
"""

from __future__ import annotations

from models.dcl_model import DCLModel
from models.qs_model import QuerySelected


class QSDualModel(QuerySelected, DCLModel):
    """`--model qs_dual`: dcl with query-selected attention on `--qs_layers`.

    From DCLGAN: networks, losses and their weights, hinge, the heads' optimiser, `--nce_layers` 4,8,12,16,
    negatives from the whole batch. From QS-Attn: on `--qs_layers` the source's rows of least entropy are
    chosen and route source and translation alike, and gradient reaches the source's encoder through them. By
    default `--qs_layers` are the last two of `--nce_layers`, as in the paper, and the others contrast random
    patches. So qs_dual differs from dcl only in the choice of patches, and from qs in being two-sided.
    """

    @staticmethod
    def default_qs_layers(nce_layers: list[int]) -> list[int]:
        return nce_layers[-2:]
