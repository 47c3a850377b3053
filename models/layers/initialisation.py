"""Weight initialisation behind `--init_type`: weights drawn, biases 0, batch norm around 1."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn import init

INITS: dict[str, Callable] = {
    "normal": lambda weight, gain: init.normal_(weight, 0.0, gain),
    "xavier": lambda weight, gain: init.xavier_normal_(weight, gain=gain),
    "kaiming": lambda weight, gain: init.kaiming_normal_(weight, a=0, mode="fan_in"),
}


def initialise(net: nn.Module, init_type: str = "xavier", gain: float = 0.02) -> nn.Module:
    """Draw the weights of `net` in place from torch's default generator and return it."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            INITS[init_type](module.weight, gain)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.normal_(module.weight, 1.0, gain)
            init.zeros_(module.bias)
    return net
