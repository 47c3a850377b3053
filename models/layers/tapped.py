"""Runs a stack of layers and keeps the outputs of some of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def run_layers(
    model: nn.Sequential, x: Tensor, layers: Sequence[int] = (), stop: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The output of the first `stop` modules of `model` (None: all), and those of the modules `layers`.

    `models/speed/fused.py` has a faster form of the same function, which networks use where the accelerator
    says so.
    """
    taps = {}
    for number, module in enumerate(model[:stop]):
        x = module(x)
        if number in layers:
            taps[number] = x
    return x, [taps[number] for number in layers]
