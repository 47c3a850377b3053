"""From a decoded image to the network's input, in three parts, by the modes of CUT.

`Preprocess.resize` is deterministic and works on PIL images, so that its result can be cached; a window is
drawn for each sample; the device mirrors and normalises whole batches. Crops are squares of crop_size: at a
random place in training, in the middle at test. Whole images are resized to the nearest multiples of 4, which
the generator needs.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from util.errors import UserError

MODES = ("resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "scale_shortside_and_crop", "none")
MULTIPLE = 4  # the generator halves the image twice
MIN_SIDE = 16  # pixels; with less, its residual blocks see less than 4 x 4 positions

# Modes that keep the aspect, or the lack of it, when load_size becomes crop_size. scale_width, which makes
# images at least crop_size high, would stretch wide ones.
LATE_RESIZE = ("resize_and_crop", "scale_shortside_and_crop")


def crops(mode: str) -> bool:
    """Whether a mode crops squares of crop_size (else it takes whole images, which may differ in size)."""
    return mode.endswith("crop")


@dataclass(frozen=True)
class Preprocess:
    """How one run turns images into inputs. Raises `UserError` for impossible sizes."""

    mode: str = "resize_and_crop"
    load_size: int = 286
    crop_size: int = 256
    flip: bool = True  # mirror half of the training images
    training: bool = True  # random crops and flips
    n_epochs: int | None = None  # the modes of LATE_RESIZE resize to crop_size after this epoch; None: never
    whole: bool = False  # take the whole resized image, also in modes that crop

    def __post_init__(self) -> None:
        limit = self.crop_size if self.mode == "crop" else self.load_size
        if self.crops and (self.crop_size % MULTIPLE or not MIN_SIDE <= self.crop_size <= limit):
            found = f"--crop_size {self.crop_size} cannot be used"
            bounds = f"at least {MIN_SIDE} and at most --load_size, {self.load_size}"
            raise UserError(f"{found}: take a multiple of {MULTIPLE}, {bounds}")

    @property
    def crops(self) -> bool:
        return crops(self.mode) and not self.whole

    def load_size_at(self, epoch: int) -> int:
        """The load size of this epoch, pixels."""
        late = self.training and self.n_epochs is not None and epoch > self.n_epochs
        return self.crop_size if late and self.mode in LATE_RESIZE else self.load_size

    def resize(self, image: Image.Image, load_size: int) -> Image.Image:
        """The deterministic part, bicubic. Raises `UserError` with the sizes for an unusable image."""
        width, height = image.size
        if self.mode == "resize_and_crop":
            width = height = load_size
        elif self.mode.startswith("scale_width"):
            width, height = load_size, max(load_size * height // width, self.crop_size)
        elif self.mode == "scale_shortside_and_crop" and min(image.size) < load_size:
            scale = load_size / min(image.size)
            width, height = round(width * scale), round(height * scale)
        if not self.crops:
            width, height = (round(side / MULTIPLE) * MULTIPLE for side in (width, height))
        least = self.crop_size if self.crops else MIN_SIDE
        if min(width, height) < least:
            found = f"it is {image.width} x {image.height} pixels"
            raise UserError(f"{found}, and --preprocess {self.mode} needs {least} x {least}")
        if (width, height) == image.size:
            return image
        return image.resize((width, height), Image.Resampling.BICUBIC)

    def draw_window(self, generator: random.Random, height: int, width: int) -> tuple[int, int, bool]:
        """Where to crop a (height, width) image, top and left in pixels, and whether to mirror it.

        Always draws three numbers, so that options do not change the numbers drawn after them.
        """
        free = (height - self.crop_size, width - self.crop_size) if self.crops else (0, 0)
        top, left = (generator.randrange(room + 1) for room in free)
        mirrored = generator.random() < 0.5
        if not self.training:
            return free[0] // 2, free[1] // 2, False
        return top, left, mirrored and self.flip

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the window in a (height, width) image."""
        return (self.crop_size, self.crop_size) if self.crops else (height, width)


LUMINANCE = (0.299, 0.587, 0.114)  # Rec. 601, as Pillow's grey


def to_input(pixels: Tensor, mirrored: Tensor | None = None, channels: int = 3) -> Tensor:
    """Pixels (B, H, W, 3) uint8 as the networks take them, (B, channels, H, W) float32 in [-1, 1].

    mirrored: (B,) bool, which images to mirror left to right. channels: 3, or 1 for luminance.
    """
    if mirrored is not None:
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
    images = pixels.permute(0, 3, 1, 2).float().contiguous()  # (B, 3, H, W)
    if channels == 1:
        red, green, blue = images.split(1, 1)
        images = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue  # (B, 1, H, W)
    return images.mul_(1 / 127.5).sub_(1).clamp_(-1, 1)


# ---- LSeSim's second view of an image: the same crop and mirroring in other colours ----


def adjust_hue(image: Tensor, turns: float) -> Tensor:
    """Turn the hues of an image (3, H, W) in [0, 1] by `turns`, in [-0.5, 0.5].

    The arithmetic is that of torchvision's `adjust_hue`, which copies a table from the host at each call and
    so makes a GPU wait.
    """
    red, green, _ = image
    least, value = image.aminmax(dim=0)
    spread = value - least
    grey = spread == 0
    saturation = spread / torch.where(grey, 1.0, value)
    below_r, below_g, below_b = (value - image) / torch.where(grey, 1.0, spread)
    blue_most, green_most = below_g + 4.0 - below_r, below_r + 2.0 - below_b
    hue = torch.where(value == green, green_most, blue_most)
    hue = torch.where(value == red, below_b - below_g, hue)
    hue = ((hue * (1.0 / 6.0) + 1.0).fmod(1.0) + turns).remainder(1.0)

    sector = (6 * hue).floor()
    part = saturation * (6 * hue - sector)
    rest = 1.0 - saturation
    low = (rest * value).clamp(0, 1)
    falling, rising = ((1.0 - part) * value).clamp(0, 1), ((part + rest) * value).clamp(0, 1)
    of_sectors = (  # of red, green and blue, in each sixth of the circle of hues
        (value, falling, low, low, rising, value),
        (rising, value, value, falling, low, low),
        (low, low, rising, value, value, falling),
    )
    number = sector.long().remainder(6)[None]
    return torch.cat([torch.stack(planes).gather(0, number) for planes in of_sectors])


# The changes of colour and how far they go (as released): factors within 1 -+ 0.5, hue in turns.
ADJUSTMENTS: dict[str, tuple[Callable[[Tensor, float], Tensor], float, float]] = {
    "brightness": (functional.adjust_brightness, 0.5, 1.5),
    "contrast": (functional.adjust_contrast, 0.5, 1.5),
    "saturation": (functional.adjust_saturation, 0.5, 1.5),
    "hue": (adjust_hue, -0.3, 0.3),
}


def draw_jitter(generator: random.Random) -> list[tuple[str, float]]:
    """The changes of one image, names of `ADJUSTMENTS` and amounts, in the order in which to apply them."""
    changes = [(name, generator.uniform(low, high)) for name, (_, low, high) in ADJUSTMENTS.items()]
    generator.shuffle(changes)
    return changes


def jitter(images: Tensor, changes: Sequence[list[tuple[str, float]]]) -> Tensor:
    """Apply `changes[i]`, by torchvision's arithmetic of floats, to image i of (B, 3, H, W) in [-1, 1]."""
    views = []
    for image, of_image in zip(images / 2 + 0.5, changes, strict=True):
        for name, amount in of_image:
            image = ADJUSTMENTS[name][0](image, amount)
        views.append(image)
    return torch.stack(views) * 2 - 1
