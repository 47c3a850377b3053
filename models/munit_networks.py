"""The networks of MUNIT (Huang et al., ECCV 2018): auto-encoders of content and style, discriminators.

An image is encoded as content (a feature map) and style (a few numbers). The decoder maps content to an
image; an MLP computes the decoder's AdaIN parameters from the style. Translation decodes the content of one
domain with a style of the other.

State-dict keys are those of the released code. For the released initial weights, call `initialise` with
"kaiming" on an `AdaINGenerator` and with "normal", 0.02 on a `MultiScaleDiscriminator`.

Shapes: B images, C channels, H x W positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.gan_loss import GAN_LOSSES
from models.layers import InstanceNorm, full
from util.errors import UserError

EPS = 1e-5


def random_styles(count: int, style_dim: int, device: torch.device | str) -> Tensor:
    """Styles (count, style_dim, 1, 1) from the standard normal distribution, by torch's default generator.

    All styles of a training are drawn here; the function is looked up on this module at each call.
    """
    return torch.randn(count, style_dim, 1, 1, device=device)


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """gamma (x - mean) / (std + 1e-5) + beta, with mean and unbiased std over C, H and W of each image.

    Differs from `torch.nn.functional.layer_norm`: std is unbiased, and 1e-5 is added to std, not to the
    variance. Statistics and output are float32 or wider. A constant image gives beta, with finite gradients.

    Args:
        x: (B, C, H, W), more than one element per image.
        gamma, beta: (C,)
    """
    x = full(x)
    std, mean = torch.std_mean(x, (1, 2, 3), correction=1, keepdim=True)  # (B, 1, 1, 1)
    gamma, beta = gamma[:, None, None], beta[:, None, None]  # (C, 1, 1)
    scale = gamma / (std + EPS)  # (B, C, 1, 1)
    return torch.addcmul(beta - mean * scale, x, scale)  # one pass; backward saves x alone


def adain(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """scale (x - mean) / sqrt(var + 1e-5) + shift, with mean and biased var over H, W per image and channel.

    Adaptive instance normalisation (Huang and Belongie, ICCV 2017). Statistics and output are float32 or
    wider. `torch.nn.functional.instance_norm` is not used: its gradient can be wrong (see `InstanceNorm`).

    Args:
        x: (B, C, H, W)
        shift, scale: (B, C), per image and channel.
    """
    x = full(x)
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)  # (B, C, 1, 1)
    scale = scale[:, :, None, None] * (variance + EPS).rsqrt()
    return torch.addcmul(shift[:, :, None, None] - mean * scale, x, scale)


class LayerNorm(nn.Module):
    """`layer_norm` with learned gamma and beta (C,). (B, C, H, W). Gamma is initialised uniform in [0, 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.gamma, self.beta)


class AdaIN(nn.Module):
    """`adain` as a layer without state: shift and scale are arguments of forward."""

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return adain(x, shift, scale)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": lambda channels: InstanceNorm(),
    "layer": LayerNorm,
    "adain": lambda channels: AdaIN(),
    "none": lambda channels: nn.Identity(),
}

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(True),
    "lrelu": lambda: nn.LeakyReLU(0.2, True),
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


class ConvBlock(nn.Module):
    """activation(norm(conv(x))) with reflection padding; `affine` is passed on to the norm.

    Released state dicts may contain unused running statistics of AdaIN and instance norm: these are ignored
    on load.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int,
        padding: int,
        norm: str = "none",
        activation: str = "relu",
    ):
        super().__init__()
        self.norm = NORMS[norm](c_out)
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, padding_mode="reflect")
        self.activation = ACTIVATIONS[activation]()
        self.register_load_state_dict_pre_hook(_drop_unused_statistics)

    def forward(self, x: Tensor, *affine: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x), *affine))


def _drop_unused_statistics(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        state_dict.pop(f"{prefix}norm.{name}", None)


class LinearBlock(nn.Module):
    """activation(linear(x)). (B, c_in) -> (B, c_out)."""

    def __init__(self, c_in: int, c_out: int, activation: str = "relu"):
        super().__init__()
        self.fc = nn.Linear(c_in, c_out)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.fc(x))


class ResidualBlock(nn.Module):
    """x + conv(relu(norm(conv(x)))) with a norm after each 3x3 convolution. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.model = nn.ModuleList(
            ConvBlock(channels, channels, 3, 1, 1, norm, activation) for activation in ("relu", "none")
        )

    def forward(self, x: Tensor, *affine: Tensor) -> Tensor:
        """`affine` (AdaIN only): shift and scale of the first norm, then of the second, (B, C) each."""
        first, second = self.model
        return x + second(first(x, *affine[:2]), *affine[2:])


class ResidualBlocks(nn.Module):
    """`n_res` residual blocks. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, n_res: int, channels: int, norm: str):
        super().__init__()
        self.model = nn.ModuleList(ResidualBlock(channels, norm) for _ in range(n_res))

    def forward(self, x: Tensor, affine: Tensor | None = None) -> Tensor:
        """`affine` (AdaIN only): (B, n_res * 4 * C), per block in the order of `ResidualBlock.forward`."""
        if affine is None:
            for block in self.model:
                x = block(x)
            return x
        affine = affine.unflatten(1, (len(self.model), 4, x.shape[1]))  # (B, n_res, 4, C)
        for block, parameters in zip(self.model, affine.unbind(1), strict=True):
            x = block(x, *parameters.unbind(1))
        return x


class ContentEncoder(nn.Module):
    """Images (B, input_nc, H, W) -> content (B, out_channels, H / 2^n_downsample, W / 2^n_downsample)."""

    def __init__(self, input_nc: int, dim: int, n_downsample: int, n_res: int):
        super().__init__()
        layers: list[nn.Module] = [ConvBlock(input_nc, dim, 7, 1, 3, "instance")]
        for _ in range(n_downsample):
            layers.append(ConvBlock(dim, 2 * dim, 4, 2, 1, "instance"))
            dim *= 2
        self.model = nn.Sequential(*layers, ResidualBlocks(n_res, dim, "instance"))
        self.out_channels = dim

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class StyleEncoder(nn.Module):
    """Images (B, input_nc, H, W) -> styles (B, style_dim, 1, 1). No norms: they would remove the style."""

    HALVINGS = 4

    def __init__(self, input_nc: int, dim: int, style_dim: int):
        super().__init__()
        layers: list[nn.Module] = [ConvBlock(input_nc, dim, 7, 1, 3)]
        for widening in [2, 2] + [1] * (self.HALVINGS - 2):
            layers.append(ConvBlock(dim, widening * dim, 4, 2, 1))
            dim *= widening
        self.model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, style_dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class MLP(nn.Module):
    """Styles (B, style_dim) or (B, style_dim, 1, 1) -> the decoder's AdaIN parameters (B, parameters)."""

    def __init__(self, style_dim: int, parameters: int, dim: int):
        super().__init__()
        self.model = nn.Sequential(
            LinearBlock(style_dim, dim), LinearBlock(dim, dim), LinearBlock(dim, parameters, "none")
        )

    def forward(self, style: Tensor) -> Tensor:
        return self.model(style.flatten(1))


class Decoder(nn.Module):
    """Content (B, C, h, w), AdaIN parameters (B, affine_parameters) -> images (B, output_nc, H, W)."""

    def __init__(self, output_nc: int, channels: int, n_upsample: int, n_res: int):
        super().__init__()
        self.affine_parameters = n_res * 4 * channels  # shift and scale of two convolutions
        layers: list[nn.Module] = [ResidualBlocks(n_res, channels, "adain")]
        for _ in range(n_upsample):
            layers += [nn.Upsample(scale_factor=2), ConvBlock(channels, channels // 2, 5, 1, 2, "layer")]
            channels //= 2
        layers.append(ConvBlock(channels, output_nc, 7, 1, 3, activation="tanh"))
        self.model = nn.ModuleList(layers)

    def forward(self, content: Tensor, affine: Tensor) -> Tensor:
        blocks, *layers = self.model
        x = blocks(content, affine)
        for layer in layers:
            x = layer(x)
        return x


class AdaINGenerator(nn.Module):
    """The auto-encoder of one domain (MUNIT, section 5.1). Images (B, input_nc, H, W) in [-1, 1].

    Calls leave no state on the module: it is re-entrant, can be exported, and captured in a CUDA graph.

    Args:
        dim: channels of the first convolution; the content code has dim * 2^n_downsample.
        mlp_dim: hidden width of the MLP.
        style_dim: length of a style code.
        n_downsample: stride-2 convolutions of the content encoder.
        n_res: residual blocks of the content encoder and of the decoder.

    Attributes:
        size_multiple: H and W must be multiples of this; the decoded image would be smaller otherwise.
        smallest_side: the least H and W, in pixels.
    """

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        dim: int = 64,
        mlp_dim: int = 256,
        style_dim: int = 8,
        n_downsample: int = 2,
        n_res: int = 4,
    ):
        super().__init__()
        self.style_dim = style_dim
        self.size_multiple = 2**n_downsample
        # Reflection padding of 1 needs a side of at least 2 at the last 4x4 or 3x3 convolution.
        self.smallest_side = 2 ** max(StyleEncoder.HALVINGS, n_downsample + 1)
        self.enc_style = StyleEncoder(input_nc, dim, style_dim)
        self.enc_content = ContentEncoder(input_nc, dim, n_downsample, n_res)
        self.dec = Decoder(output_nc, self.enc_content.out_channels, n_downsample, n_res)
        self.mlp = MLP(style_dim, self.dec.affine_parameters, mlp_dim)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Content (B, C, H / size_multiple, W / size_multiple) and style (B, style_dim, 1, 1) of images."""
        return self.enc_content(images), self.enc_style(images)

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """Images (B, output_nc, H, W) in [-1, 1] of content and style, (B, style_dim[, 1, 1])."""
        return self.dec(content, self.mlp(style))

    def forward(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Decode the content of images with `style`; None: their own style (reconstruction)."""
        content = self.enc_content(images)
        return self.decode(content, self.enc_style(images) if style is None else style)


class MultiScaleDiscriminator(nn.Module):
    """`num_scales` PatchGANs of equal layout; each next one sees the images at half the size.

    Args:
        dim: channels of the first convolution, doubled by each following one.
        n_layers: stride-2 convolutions per scale, without norms; a 1x1 convolution follows.

    Attributes:
        smallest_side: the least H and W, in pixels.
    """

    def __init__(self, input_nc: int = 3, dim: int = 64, n_layers: int = 4, num_scales: int = 3):
        super().__init__()
        # The last 4x4 convolution needs a side of at least 2 (reflection padding); pooling rounds sides up.
        self.smallest_side = 2 ** (num_scales - 1) * (2**n_layers - 1) + 1
        self.downsample = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.cnns = nn.ModuleList(self._one_scale(input_nc, dim, n_layers) for _ in range(num_scales))

    @staticmethod
    def _one_scale(input_nc: int, dim: int, n_layers: int) -> nn.Sequential:
        widths = [input_nc, *(dim * 2**n for n in range(n_layers))]
        layers: list[nn.Module] = [
            ConvBlock(c_in, c_out, 4, 2, 1, activation="lrelu")
            for c_in, c_out in zip(widths[:-1], widths[1:], strict=True)
        ]
        return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Score maps (B, 1, h, w) per scale, finest first, of images (B, input_nc, H, W) in [-1, 1].

        Raises:
            UserError: a side is below `smallest_side`.
        """
        height, width = images.shape[2:]
        if min(height, width) < self.smallest_side:
            raise UserError(
                f"an image of {width} x {height} pixels is too small for this discriminator, which needs "
                f"{self.smallest_side} x {self.smallest_side}: use larger images, or fewer scales or layers"
            )
        scores = []
        for scale, cnn in enumerate(self.cnns):
            if scale > 0:
                images = self.downsample(images)
            scores.append(cnn(images))
        return scores


class StyledTranslator(nn.Module):
    """Translates with a style: the content of a source image is decoded in the target domain.

    Attributes:
        style_dim: length of a style.
    """

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


def discriminator_loss(fake: Sequence[Tensor], real: Sequence[Tensor], gan_mode: str = "lsgan") -> Tensor:
    """Sum over scales of the terms for fake and real, not halved: mean(D(fake)^2) + mean((D(real) - 1)^2).

    Args:
        fake, real: score maps, one per scale.
        gan_mode: other objectives of `models.gan_loss` have their terms instead.
    """
    loss = GAN_LOSSES[gan_mode]
    return sum(loss(full(f), False) + loss(full(r), True) for f, r in zip(fake, real, strict=True))


def generator_loss(fake: Sequence[Tensor], gan_mode: str = "lsgan") -> Tensor:
    """Sum over scales of mean((D(fake) - 1)^2)."""
    return sum(GAN_LOSSES[gan_mode](full(f), True) for f in fake)
