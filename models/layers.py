"""What the networks are made of: precision, normalisation, anti-aliased resampling, taps, initialisation."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init

HALVES = (torch.bfloat16, torch.float16)


def full(x: Tensor) -> Tensor:
    """`x` in float32 where it is in half precision; float32 and float64 stay."""
    return x.float() if x.dtype in HALVES else x


def l1(x: Tensor, y: Tensor) -> Tensor:
    """The mean absolute difference, in float32 also of half precision; both may carry gradient."""
    return F.l1_loss(full(x), full(y))


def with_contiguous_gradient(x: Tensor) -> Tensor:
    """`x`, output of a PyTorch norm, with a contiguous gradient where a fault of PyTorch could strike.

    On the CPU, `instance_norm` and `batch_norm` misread a channels-last gradient of a batch of one, without a
    warning (torch 2.6 to 2.15). `layer_norm` and larger batches are right.
    """
    if x.requires_grad and x.device.type == "cpu" and len(x) == 1:
        x.register_hook(Tensor.contiguous)
    return x


class InstanceNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) over H and W of each image and channel (Ulyanov et al., 2016)."""

    EPS = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[2:], eps=self.EPS)


class BatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with a right gradient for a batch of one on the CPU too. (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return with_contiguous_gradient(super().forward(x))


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": lambda channels: InstanceNorm(),
    "batch": BatchNorm,
    "none": lambda channels: nn.Identity(),
}


def conv_has_bias(norm: str) -> bool:
    """Whether a convolution before this normalisation carries a bias, as the released checkpoints have it."""
    return norm == "instance"


def _binomial(taps: list[float], gain: float, channels: int) -> Tensor:
    """The separable filter taps x taps with sum `gain`, once per channel: (C, 1, k, k)."""
    row = torch.tensor(taps, device="cpu")  # also where a network is built on "meta", for its shapes alone
    kernel = torch.outer(row, row)
    return (gain * kernel / kernel.sum()).expand(channels, 1, -1, -1).clone()


class BlurDownsample(nn.Module):
    """Blur with [1,2,1] x [1,2,1] / 16 (reflected border) and halve (Zhang, ICML 2019)."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", _binomial([1, 2, 1], 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.filt.to(x.dtype), stride=2, groups=x.shape[1])


class BlurUpsample(nn.Module):
    """Insert zeros and blur with [1,3,3,1] x [1,3,3,1] / 16 (replicated border), which is bilinear x 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", _binomial([1, 3, 3, 1], 4, channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def run_layers(
    model: nn.Sequential, x: Tensor, layers: Sequence[int] = (), stop: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The output of the first `stop` modules of `model` (None: all), and those of the modules `layers`."""
    taps = {}
    for number, module in enumerate(model[:stop]):
        x = module(x)
        if number in layers:
            taps[number] = x
    return x, [taps[number] for number in layers]


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
