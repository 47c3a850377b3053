"""The translator of images of any size, made by `models.inference.load_generator`."""

import copy
from argparse import Namespace
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.transforms import MIN_SIDE, to_input
from models.munit_networks import StyledTranslator
from util.device import HostCopy, free_memory, host_pixels
from util.errors import UserError
from util.translate import finished, to_photo

Style = int | Image.Image | Tensor | Sequence[float]

# Bytes of memory on the CPU for each pixel and channel of the largest feature maps, measured with ResNets.
BYTES = 28


class Translator:
    """A generator for images of any size: `translator(image)` is the translation, of exactly the same size.

    `net`, on `device`, maps (B, input_nc, H, W) to (B, output_nc, H, W) in [-1, 1], H and W multiples of
    `multiple`. `opt` has test.py's options; `translate_size` is the shorter side that it translates best, in
    pixels; None: any. `variant` is what the network takes besides images: a style (style_dim,), at first that
    of seed 0; or the number () of the target in `domains`, which `with_domain` sets; else None.
    """

    def __init__(self, net: nn.Module, device: torch.device, opt: Namespace, multiple: int = 4):
        self.net, self.device, self.opt = net, device, opt
        self.multiple, self.input_nc = multiple, opt.input_nc
        self.translate_size, self.domains = opt.translate_size, tuple(getattr(opt, "domains", ()))
        self.smallest = max(MIN_SIDE, getattr(net, "smallest_side", 0))
        self._bf16 = opt.precision == "bf16"
        self._layout = torch.channels_last if opt.channels_last else torch.contiguous_format
        self.style_dim = net.style_dim if isinstance(net, StyledTranslator) else 0
        self.variant = self.draw_styles(1, seed=0)[0] if self.style_dim else None

    def __call__(
        self,
        image: Image.Image,
        style: Style | None = None,
        load_size: int | None = None,
        domain: str | None = None,
    ) -> Image.Image:
        """Translate a Pillow image of any mode and size; see `with_style` and `with_domain`.

        The result is sRGB (grey for output_nc 1), upright by the EXIF orientation; an alpha channel is kept.
        `load_size` scales the shorter side to so many pixels first; 0: as it is. None: a larger image than
        `translate_size` is translated at that size, and scaled back.
        """
        translator = self if style is None else self.with_style(style)
        translator = translator if domain is None else translator.with_domain(domain)
        photo = to_photo(image, load_size, self.translate_size)
        return finished(translator.translate([photo.pixels]).numpy()[0], photo)

    def with_style(self, style: Style) -> "Translator":
        """A translator to one style: that of a seed, of a Pillow image, or `style_dim` numbers."""
        if not self.style_dim:
            raise ValueError("this network translates without styles: leave out style")
        if isinstance(style, Image.Image):
            images, _, _ = self._extend(self._images([to_photo(style).pixels]))
            with torch.inference_mode(), self._autocast():
                style = self.net.style_of(images)[0]
        elif isinstance(style, int):
            style = self.draw_styles(1, seed=style)[0]
        style = torch.as_tensor(style, dtype=torch.float32, device=self.device).flatten()
        if len(style) != self.style_dim or not style.isfinite().all():
            wanted = f"{self.style_dim} finite numbers, a seed or an image"
            raise ValueError(f"a style of this network is {wanted}, not {style.tolist()}")
        return self._with(style)

    def with_domain(self, domain: str) -> "Translator":
        """A translator to one of `domains`. UserError, a ValueError, for another one."""
        if domain not in self.domains:
            there = f"its domains are {', '.join(self.domains)}" if self.domains else "it has no domains"
            raise UserError(f"this network does not translate to {domain!r}: {there}")
        return self._with(torch.tensor(self.domains.index(domain), device=self.device))

    def _with(self, variant: Tensor) -> "Translator":
        translator = copy.copy(self)
        translator.variant = variant
        return translator

    def draw_styles(self, count: int, seed: int = 0) -> Tensor:
        """Random styles (count, style_dim), equal on every device; a smaller count has the first of them."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, self.style_dim, generator=generator).to(self.device)

    def translate(self, pixels: Sequence[np.ndarray]) -> HostCopy:
        """Translate images (H, W, 3) uint8 of one size, to (H, W, C); on CUDA it returns before that."""
        return host_pixels(self.run(self._images(pixels)))

    def _images(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Images (H, W, 3) uint8 of one size as (B, input_nc, H, W) in [-1, 1]."""
        batch = torch.from_numpy(np.stack(pixels))  # (B, H, W, 3)
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        return to_input(batch.to(self.device), channels=self.input_nc)

    @torch.inference_mode()
    def run(self, images: Tensor) -> Tensor:
        """Translate (B, input_nc, H, W) in [-1, 1], any H and W, to (B, output_nc, H, W) float32."""
        if self.domains and self.variant is None:
            raise UserError(f"this network translates to {', '.join(self.domains)}: say which, as domain")
        self._require_memory(*images.shape)
        variant = [] if self.variant is None else [self.variant.expand(len(images), *self.variant.shape)]
        return self._apply(lambda extended: self.net(extended, *variant), images)

    def _require_memory(self, count: int, _: int, height: int, width: int) -> None:
        if self.device.type != "cpu":  # where torch raises an error by itself
            return
        channels = next((len(kernel) for kernel in self.net.parameters() if kernel.ndim == 4), 1)
        needed, free = BYTES * channels * count * height * width, free_memory()
        if needed > free:
            fits = int(min(height, width) * (free / needed) ** 0.5)
            found = f"translating it takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            raise MemoryError(f"{found}: scale it, with --load_size {fits} or less")

    @torch.inference_mode()
    def attention(self, images: Tensor) -> Tensor | None:
        """The guiding discriminator's map of images, as images of their size, -1 to 1; None without one."""
        if getattr(self.net, "discriminator", None) is None:
            return None
        return self._apply(self.net.attention_picture, images)

    def _apply(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        images, top, left = self._extend(images)
        with self._autocast():
            output = function(images)
        return output[:, :, top : top + height, left : left + width].float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16)

    def _extend(self, images: Tensor) -> tuple[Tensor, int, int]:
        """Images extended by reflection to sides that the network takes, and the rows and columns before."""
        (rows, top), (columns, left) = map(self._extended, images.shape[2:])
        if (len(rows), len(columns)) != images.shape[2:]:
            images = images[:, :, rows][:, :, :, columns]
        return images.contiguous(memory_format=self._layout), top, left

    def _extended(self, length: int) -> tuple[Tensor, int]:
        """The positions of a side extended by reflection, and how many lie before the first original one."""
        whole = -(-max(length, self.smallest) // self.multiple) * self.multiple
        before = (whole - length) // 2
        period = max(2 * (length - 1), 1)  # to the end and back; one pixel only repeats
        positions = torch.arange(-before, whole - before, device=self.device).remainder(period)
        return torch.minimum(positions, period - positions), before
