"""QS-Attn (Hu et al., CVPR 2022): CUT whose deeper layers choose and route patches by attention."""

from __future__ import annotations

from argparse import Namespace

import torch.nn.functional as F
from torch import Tensor

from models import build
from models.contrast import ContrastModel
from models.cut_model import CUTModel
from models.patch_sampler import PatchSelection
from models.qs_attn import MODES, QuerySelection, select_queries
from models.qs_released import RULES, select_queries_released
from util.arguments import integer, layer_list
from util.errors import UserError

VARIANTS = {"paper": select_queries, "released": select_queries_released}


class QuerySelected(ContrastModel):
    """Query-selected attention on `--qs_layers`."""

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        add("--QS_mode", "global", "attention that selects and routes the queries", choices=tuple(MODES))
        add(
            "--qs_layers",
            None,
            "layers with QS-Attn, of --nce_layers; of qs_dual the last two",
            type=layer_list,
            shown="all but the first three",
        )
        add(
            "--qs_pool",
            0,
            "average QS-Attn layers to at most this many positions per side; 0: never",
            type=integer(0),
        )
        add(
            "--qs_window",
            7,
            "side of the local window, odd, in positions",
            type=integer(1),
            only={"QS_mode": tuple(mode for mode in MODES if mode != "global")},
        )

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        if opt.qs_layers is None:
            opt.qs_layers = cls.default_qs_layers(opt.nce_layers)
        outside = [layer for layer in opt.qs_layers if layer not in opt.nce_layers]
        if outside:
            raise UserError(
                f"--qs_layers names {outside[0]}, which is not among --nce_layers "
                f"{','.join(map(str, opt.nce_layers))}"
            )
        if opt.qs_window % 2 == 0:
            raise UserError(
                f"--qs_window is {opt.qs_window}, but a window has a centre: give an odd number such as 7"
            )

    @staticmethod
    def default_qs_layers(nce_layers: list[int]) -> list[int]:
        """The `--qs_layers` where none are given."""
        raise NotImplementedError

    def prepare_features(self, number: int, features: Tensor) -> Tensor:
        """Large maps of QS-Attn layers averaged to at most `--qs_pool` a side (the supplement's model B)."""
        return pooled(features, self.opt.qs_pool) if self.selects(number) else features

    def choose_patches(self, number: int, features: Tensor) -> PatchSelection | QuerySelection:
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
        add(
            "--qs_variant",
            "paper",
            "paper: the method; released: the released code's arithmetic",
            choices=("paper", "released"),
        )

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        if opt.qs_variant == "released":
            check_released(opt)

    @staticmethod
    def default_qs_layers(nce_layers: list[int]) -> list[int]:
        """The released code's rule: the deeper layers, all but the first three."""
        return nce_layers[3:] if len(nce_layers) > 3 else nce_layers[-1:]


def check_released(opt: Namespace) -> None:
    """Refuse what the released code cannot compute, and tap what it taps."""
    if opt.QS_mode not in RULES:
        raise UserError(f"--qs_variant released has no --QS_mode {opt.QS_mode}: give {', '.join(RULES)}")
    # its ReLUs work in place: of a tapped norm they leave what the ReLU behind it returns
    norms = (2, 5, 8) if opt.no_antialias else (2, 5, 9)
    if opt.netG.startswith("resnet"):
        for name in ("nce_layers", "qs_layers"):
            setattr(opt, name, [layer + (layer in norms) for layer in getattr(opt, name)])
    # its local routing pairs patches with channels, and mixes the images of a larger batch
    channels = dict(zip(opt.nce_layers, build.layer_channels(opt), strict=True))
    found = sorted({channels[layer] for layer in opt.qs_layers})
    if opt.QS_mode == "local" and (found != [opt.num_patches] or opt.batch_size > 1):
        raise UserError(
            "--qs_variant released with --QS_mode local works, as the released code does, for --batch_size 1 "
            f"and as many --num_patches as each of --qs_layers has channels; found --batch_size "
            f"{opt.batch_size}, --num_patches {opt.num_patches}, and {' and '.join(map(str, found))} channels"
        )
