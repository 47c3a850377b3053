"""QS-Attn (Hu et al., CVPR 2022): CUT whose deeper layers choose and route patches by attention.

And QS-Attn in DCLGAN: the supplement names bi-directional translation as untried and expected to work.
"""

from argparse import Namespace

import torch.nn.functional as F
from torch import Tensor

from models.cut_model import ContrastModel, CUTModel, Selection
from models.dcl_model import DCLModel
from models.qs_attn import MODES, select_queries
from models.qs_released import RULES, select_queries_released
from util.arguments import integer, layer_list
from util.errors import UserError

VARIANTS = {"paper": select_queries, "released": select_queries_released}
WINDOWED = tuple(mode for mode in MODES if mode != "global")


class QuerySelected(ContrastModel):
    """Query-selected attention on `--qs_layers`."""

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        layers = {"type": layer_list, "shown": "all but the first three; of qs_dual the last two"}
        window = {"type": integer(1), "only": {"QS_mode": WINDOWED}}
        add("--QS_mode", "global", "attention that selects and routes the queries", choices=tuple(MODES))
        add("--qs_layers", None, "layers with QS-Attn, of --nce_layers", **layers)
        add("--qs_pool", 0, "most positions a side of QS-Attn layers, else averaged; 0: any", type=integer(0))
        add("--qs_window", 7, "side of the local window, odd, in positions", **window)

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        if opt.qs_layers is None:
            opt.qs_layers = cls.default_qs_layers(opt.nce_layers)
        if outside := [layer for layer in opt.qs_layers if layer not in opt.nce_layers]:
            layers = ",".join(map(str, opt.nce_layers))
            raise UserError(f"--qs_layers names {outside[0]}, which is not among --nce_layers {layers}")
        if opt.qs_window % 2 == 0:
            raise UserError(f"--qs_window is {opt.qs_window}: give an odd number such as 7")

    @staticmethod
    def default_qs_layers(nce_layers: list[int]) -> list[int]:
        """The released code's rule: the deeper layers, all but the first three."""
        return nce_layers[3:] if len(nce_layers) > 3 else nce_layers[-1:]

    def prepare_features(self, number: int, features: Tensor) -> Tensor:
        """Large maps of QS-Attn layers averaged to at most `--qs_pool` a side (the supplement's model B)."""
        return pooled(features, self.opt.qs_pool) if self.selects(number) else features

    def choose_patches(self, number: int, features: Tensor) -> Selection:
        """The `--num_patches` queries of least entropy in each image, with their attention."""
        if not self.selects(number):
            return super().choose_patches(number, features)
        opt = self.opt
        return VARIANTS[opt.qs_variant](features, opt.QS_mode, opt.num_patches, opt.qs_window)

    def selects(self, number: int) -> bool:
        """Whether the `number`-th of `--nce_layers` has QS-Attn."""
        return self.opt.nce_layers[number] in self.opt.qs_layers


def pooled(features: Tensor, side: int) -> Tensor:
    """Features (B, C, H, W) averaged to at most `side` positions a side; 0: as they are."""
    if not side or max(features.shape[2:]) <= side:
        return features
    return F.adaptive_avg_pool2d(features, [min(side, length) for length in features.shape[2:]])


class QSModel(QuerySelected, CUTModel):
    """`--model qs`: query-selected attention on `--qs_layers`, random patches on other `--nce_layers`."""

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        what = "paper: the method; released: the released code's arithmetic"
        add("--qs_variant", "paper", what, choices=tuple(VARIANTS))

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        if opt.qs_variant != "released":
            return
        if opt.QS_mode not in RULES:
            raise UserError(f"--qs_variant released has no --QS_mode {opt.QS_mode}: give {', '.join(RULES)}")
        # its ReLUs work in place: of a tapped norm they leave what the ReLU behind it returns
        norms = (2, 5, 8) if opt.no_antialias else (2, 5, 9)
        if opt.netG.startswith("resnet"):
            for name in ("nce_layers", "qs_layers"):
                setattr(opt, name, [layer + (layer in norms) for layer in getattr(opt, name)])


class QSDualModel(QuerySelected, DCLModel):
    """`--model qs_dual`: dcl with query-selected attention on `--qs_layers`.

    The source's rows of least entropy are chosen and route source and translation alike, and gradient reaches
    the source's encoder through them. All else is DCLGAN's. By default `--qs_layers` are the last two of
    `--nce_layers`, as in the paper, and the others contrast random patches.
    """

    @staticmethod
    def default_qs_layers(nce_layers: list[int]) -> list[int]:
        return nce_layers[-2:]
