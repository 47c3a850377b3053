"""The networks of MUNIT (Huang et al., ECCV 2018): auto-encoders of content and style, discriminators.

An image is encoded as content (a feature map) and style (a few numbers). The decoder maps content to an
image; an MLP computes its AdaIN parameters from the style. State-dict keys are those of the released code.
"""

import itertools
from collections import OrderedDict

import torch
from torch import Tensor, nn

from models.discriminator import check_sides
from models.layers import InstanceNorm, full

EPS = 1e-5
STYLE_HALVINGS = 4  # of the style encoder


def random_styles(count: int, style_dim: int, device: torch.device | str) -> Tensor:
    """Styles (count, style_dim, 1, 1) from the standard normal distribution. They are drawn here alone."""
    return torch.randn(count, style_dim, 1, 1, device=device)


class LayerNorm(nn.Module):
    """gamma (x - mean) / (std + 1e-5) + beta, with mean and unbiased std over C, H and W of each image."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = full(x)
        std, mean = torch.std_mean(x, (1, 2, 3), correction=1, keepdim=True)  # (B, 1, 1, 1)
        gamma, beta = self.gamma[:, None, None], self.beta[:, None, None]  # (C, 1, 1)
        scale = gamma / (std + EPS)  # (B, C, 1, 1)
        return torch.addcmul(beta - mean * scale, x, scale)  # one pass; backward saves x alone


class AdaIN(nn.Module):
    """scale (x - mean) / sqrt(var + 1e-5) + shift, with biased var over H, W (Huang and Belongie, 2017)."""

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        x = full(x)
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)  # (B, C, 1, 1)
        scale = scale[:, :, None, None] * (variance + EPS).rsqrt()
        return torch.addcmul(shift[:, :, None, None] - mean * scale, x, scale)


class ConvBlock(nn.Module):
    """activation(norm(conv(x))), reflection padding. `conv`: channels in and out, kernel, stride, padding."""

    def __init__(self, *conv: int, norm: nn.Module | None = None, activation: nn.Module | None = None):
        super().__init__()
        self.norm = norm or nn.Identity()
        self.conv = nn.Conv2d(*conv, padding_mode="reflect")
        self.activation = activation or nn.ReLU(True)

    def forward(self, x: Tensor, *affine: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x), *affine))


class ResidualBlocks(nn.Module):
    """`n_res` times x + conv(relu(norm(conv(x)))), a norm after each 3x3 convolution. (B, C, H, W)."""

    def __init__(self, n_res: int, channels: int, norm: type[InstanceNorm | AdaIN]):
        super().__init__()
        self.model = nn.ModuleList()
        for _ in range(n_res):
            layers = [{"norm": norm(), "activation": act()} for act in (nn.ReLU, nn.Identity)]
            self.model.append(stack(*(ConvBlock(channels, channels, 3, 1, 1, **of) for of in layers)))

    def forward(self, x: Tensor, affine: Tensor | None = None) -> Tensor:
        """`affine` (AdaIN only), (B, n_res * 4 * C): block by block, shift and scale of its norms in turn."""
        parameters = [()] * len(self.model)
        if affine is not None:
            parameters = [part.unbind(1) for part in affine.unflatten(1, (-1, 4, x.shape[1])).unbind(1)]
        for block, of_block in zip(self.model, parameters, strict=True):
            first, second = block.model
            x = x + second(first(x, *of_block[:2]), *of_block[2:])
        return x


def stack(*layers: nn.Module) -> nn.Sequential:
    """Layers under the released code's key, `model`."""
    return nn.Sequential(OrderedDict(model=nn.Sequential(*layers)))


def content_encoder(input_nc: int, dim: int, n_downsample: int, n_res: int) -> nn.Module:
    """Images (B, input_nc, H, W) -> content (B, dim * 2^n, H / 2^n, W / 2^n), with n halvings."""
    widths = [dim * 2**n for n in range(n_downsample + 1)]
    first = ConvBlock(input_nc, dim, 7, 1, 3, norm=InstanceNorm())
    halvings = [ConvBlock(width, 2 * width, 4, 2, 1, norm=InstanceNorm()) for width in widths[:-1]]
    return stack(first, *halvings, ResidualBlocks(n_res, widths[-1], InstanceNorm))


def style_encoder(input_nc: int, dim: int, style_dim: int) -> nn.Module:
    """Images (B, input_nc, H, W) -> styles (B, style_dim, 1, 1). No norms: they would remove the style."""
    widths = [dim, 2 * dim] + [4 * dim] * (STYLE_HALVINGS - 1)
    first = ConvBlock(input_nc, dim, 7, 1, 3)
    halvings = [ConvBlock(c_in, c_out, 4, 2, 1) for c_in, c_out in itertools.pairwise(widths)]
    return stack(first, *halvings, nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], style_dim, 1))


def style_mlp(style_dim: int, parameters: int, dim: int) -> nn.Module:
    """Styles (B, style_dim) -> the decoder's AdaIN parameters (B, parameters)."""
    widths = [style_dim, dim, dim, parameters]
    linear = [nn.Sequential(OrderedDict(fc=nn.Linear(*pair))) for pair in itertools.pairwise(widths)]
    for layer in linear[:-1]:
        layer.append(nn.ReLU(True))
    return stack(*linear)


class Decoder(nn.Module):
    """Content (B, C, h, w), AdaIN parameters (B, affine_parameters) -> images (B, output_nc, H, W)."""

    def __init__(self, output_nc: int, channels: int, n_upsample: int, n_res: int):
        super().__init__()
        self.affine_parameters = n_res * 4 * channels  # shift and scale of two convolutions
        layers: list[nn.Module] = [ResidualBlocks(n_res, channels, AdaIN)]
        for _ in range(n_upsample):
            norm = LayerNorm(channels // 2)
            layers += [nn.Upsample(scale_factor=2), ConvBlock(channels, channels // 2, 5, 1, 2, norm=norm)]
            channels //= 2
        layers.append(ConvBlock(channels, output_nc, 7, 1, 3, activation=nn.Tanh()))
        self.model = nn.ModuleList(layers)

    def forward(self, content: Tensor, affine: Tensor) -> Tensor:
        blocks, *layers = self.model
        x = blocks(content, affine)
        for layer in layers:
            x = layer(x)
        return x


class AdaINGenerator(nn.Module):
    """The auto-encoder of one domain (MUNIT, section 5.1). Sides are multiples of `size_multiple`."""

    def __init__(self, nc: int, dim: int, mlp_dim: int, style_dim: int, n_downsample: int, n_res: int):
        super().__init__()
        self.style_dim = style_dim
        self.size_multiple = 2**n_downsample
        # Reflection padding of 1 needs a side of at least 2 at the last 4x4 or 3x3 convolution.
        self.smallest_side = 2 ** max(STYLE_HALVINGS, n_downsample + 1)
        self.enc_style = style_encoder(nc, dim, style_dim)
        self.enc_content = content_encoder(nc, dim, n_downsample, n_res)
        self.dec = Decoder(nc, dim * 2**n_downsample, n_downsample, n_res)
        self.mlp = style_mlp(style_dim, self.dec.affine_parameters, mlp_dim)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Content (B, C, H / size_multiple, W / size_multiple) and style (B, style_dim, 1, 1) of images."""
        return self.enc_content(images), self.enc_style(images)

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """Images of content and style, (B, style_dim[, 1, 1])."""
        return self.dec(content, self.mlp(style.flatten(1)))


class MultiScaleDiscriminator(nn.Module):
    """`num_scales` PatchGANs without norms; each next one sees the images at half the size."""

    def __init__(self, input_nc: int, dim: int, n_layers: int, num_scales: int):
        super().__init__()
        # The last 4x4 convolution needs a side of at least 2 (reflection padding); pooling rounds sides up.
        self.smallest_side = 2 ** (num_scales - 1) * (2**n_layers - 1) + 1
        self.downsample = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.cnns = nn.ModuleList()
        widths = [input_nc, *(dim * 2**n for n in range(n_layers))]
        pairs = list(itertools.pairwise(widths))
        for _ in range(num_scales):
            convs = [ConvBlock(*pair, 4, 2, 1, activation=nn.LeakyReLU(0.2, True)) for pair in pairs]
            self.cnns.append(nn.Sequential(*convs, nn.Conv2d(widths[-1], 1, 1)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Score maps (B, 1, h, w) per scale, finest first."""
        check_sides(images, self.smallest_side)
        scores = []
        for cnn in self.cnns:
            scores.append(cnn(images))
            if len(scores) < len(self.cnns):
                images = self.downsample(images)
        return scores


class StyledTranslator(nn.Module):
    """Translates with a style: the content of a source image is decoded in the target domain."""

    def __init__(self, source: AdaINGenerator, target: AdaINGenerator):
        super().__init__()
        self.source, self.target = source, target
        self.style_dim = target.style_dim

    def forward(self, images: Tensor, styles: Tensor) -> Tensor:
        """Images (B, C, H, W) of the source, styles (B, style_dim) -> images (B, C', H, W) of the target."""
        return self.target.decode(self.source.enc_content(images), styles)

    def style_of(self, images: Tensor) -> Tensor:
        """The styles (B, style_dim) of images (B, C', H, W) of the target, sides of 16 pixels or more."""
        return self.target.enc_style(images).flatten(1)
