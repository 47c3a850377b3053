"""Networks of models with many domains: CUT's generator with a conditional decoder, and StarGAN's networks.

Shapes: B images, C channels, N domains. A domain is its number in `--domains`; `domain` is (B,) int64.
"""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.generator import ResnetBlock, ResnetGenerator
from models.layers import BatchNorm, InstanceNorm, full
from util.errors import UserError

# ---- qs_multi, cut_multi ----


class DomainNorm(nn.Module):
    """(1 + scale) norm(x) + shift, both affine in the target's vector; never in half precision.

    `target.vectors` (B, dim) are those of the images that the generator translates at the moment.
    """

    def __init__(self, norm: nn.Module, channels: int, target: SimpleNamespace, dim: int):
        super().__init__()
        self.norm, self.target = norm, target
        self.affine = nn.Linear(dim, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            scale, shift = self.affine(self.target.vectors)[:, :, None, None].chunk(2, 1)  # (B, C, 1, 1)
            return torch.addcmul(shift, self.norm(full(x)), 1 + scale)


class DomainResnetGenerator(ResnetGenerator):
    """A ResNet generator whose decoder knows the target, by a learned vector of each of N `domains`.

    All up to and with residual block n_blocks // 2 + 1 is the encoder, which knows no domain. Behind it every
    norm ("instance" or "batch") is a `DomainNorm`. A label as constant input channels would do nothing here:
    behind reflection padding it shifts a convolution by a constant, which instance norm removes.
    """

    def __init__(self, *channels: int, domains: int, domain_dim: int = 64, n_blocks: int = 9, **settings):
        super().__init__(*channels, n_blocks=n_blocks, **settings)
        self.target = SimpleNamespace(vectors=None)
        blocks = [number for number, module in enumerate(self.model) if isinstance(module, ResnetBlock)]
        self.last_encoder_layer = blocks[n_blocks // 2]
        for module in self.model[self.last_encoder_layer + 1 :]:
            if isinstance(module, ResnetBlock):
                self._make_conditional(module.conv_block, 0, domain_dim)
        self._make_conditional(self.model, self.last_encoder_layer + 1, domain_dim)
        self.domains = nn.Embedding(domains, domain_dim)

    def _make_conditional(self, layers: nn.Sequential, start: int, dim: int) -> None:
        for number in range(start, len(layers)):
            if isinstance(layers[number], (InstanceNorm, BatchNorm)):
                channels = layers[number - 1].out_channels
                layers[number] = DomainNorm(layers[number], channels, self.target, dim)

    def forward(
        self, x: Tensor, domain: Tensor, layers: Sequence[int] | None = None
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        self.target.vectors = self.domains(domain)
        try:
            return super().forward(x, layers)
        finally:
            self.target.vectors = None


# ---- StarGAN (Choi et al., CVPR 2018), with the released keys ----


class AffineInstanceNorm(InstanceNorm):
    """Instance norm with a weight and a bias for each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight[:, None, None] + self.bias[:, None, None]


class StarGANBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3x3, zero padding."""

    def __init__(self, channels: int):
        super().__init__()
        conv = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)]
        norm = [AffineInstanceNorm(channels) for _ in range(2)]
        self.main = nn.Sequential(conv[0], norm[0], nn.ReLU(), conv[1], norm[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class StarGANGenerator(nn.Module):
    """Images (B, input_nc, H, W) in [-1, 1] and target domains (B,) to images; H, W multiples of 4.

    The label enters as N constant channels, of which only the zero padding leaves a trace behind the first
    norm: it fades with the size, so translate at the size of the training.
    """

    def __init__(self, input_nc: int, output_nc: int, domains: int, ngf: int = 64, n_blocks: int = 6):
        super().__init__()
        self.count = domains

        def normed(conv: nn.Module) -> list[nn.Module]:
            return [conv, AffineInstanceNorm(conv.out_channels), nn.ReLU()]

        layers = normed(nn.Conv2d(input_nc + domains, ngf, 7, padding=3, bias=False))
        for c in (ngf, 2 * ngf):
            layers += normed(nn.Conv2d(c, 2 * c, 4, stride=2, padding=1, bias=False))
        layers += [StarGANBlock(4 * ngf) for _ in range(n_blocks)]
        for c in (4 * ngf, 2 * ngf):
            layers += normed(nn.ConvTranspose2d(c, c // 2, 4, stride=2, padding=1, bias=False))
        self.main = nn.Sequential(*layers, nn.Conv2d(ngf, output_nc, 7, padding=3, bias=False), nn.Tanh())

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        labels = F.one_hot(domain, self.count).to(x.dtype)[:, :, None, None]  # (B, N, 1, 1)
        return self.main(torch.cat([x, labels.expand(-1, -1, *x.shape[2:])], 1))


class StarGANDiscriminator(nn.Module):
    """Images (B, C, side, side) to scores of patches (B, 1, h, w) and logits of domains (B, N)."""

    def __init__(self, input_nc: int, domains: int, ndf: int = 64, halvings: int = 6, side: int = 128):
        super().__init__()
        self.side = side
        channels = [input_nc, *(ndf * 2**number for number in range(halvings))]
        layers = []
        for c_in, c_out in itertools.pairwise(channels):
            layers += [nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), nn.LeakyReLU(0.01)]
        self.main = nn.Sequential(*layers)
        self.conv1 = nn.Conv2d(channels[-1], 1, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels[-1], domains, side // 2**halvings, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[2:] != (self.side, self.side):
            found = f"an image of {x.shape[3]} x {x.shape[2]} pixels does not fit StarGAN's discriminator"
            raise UserError(f"{found} of --crop_size {self.side}: use a --preprocess that crops")
        features = self.main(x)
        return self.conv1(features), self.conv2(features).flatten(1)
