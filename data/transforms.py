"""From a decoded photograph to the network's input: the preprocess modes of CUT, split in two halves.

The first half, `resized`, is deterministic and works on PIL images, so its result can be cached. The second half is a window
(top, left, flip) drawn from the sample's own generator; `data.augment` cuts it out for the whole batch on the device.

| mode | first half | second half |
|---|---|---|
| resize_and_crop | both sides to load_size | crop |
| crop | nothing | crop |
| scale_width | width to load_size, aspect kept, but at least crop_size high | whole |
| scale_width_and_crop | the same | crop |
| scale_shortside_and_crop | shorter side up to load_size where it is less; larger images stay | crop |
| none | nothing | whole |

Crops are squares of crop_size: at a random place in training, in the middle at test. Whole images get sides that are multiples of
4, as the generator needs, by resizing to the nearest.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from util.errors import UserError
from util.image_files import MAX_PIXELS

MODES = ("resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "scale_shortside_and_crop", "none")
MULTIPLE = 4  # the generator halves the image twice
MIN_SIDE = 16  # pixels; below, its residual blocks would see less than 4 x 4 positions

Window = tuple[int, int, bool]  # top and left in pixels, mirrored or not


def crops(mode: str) -> bool:
    """Whether a mode cuts squares of crop_size (else it takes whole images, which may differ in size)."""
    return mode.endswith("crop")


def target_size(size: tuple[int, int], mode: str, load_size: int, crop_size: int) -> tuple[int, int]:
    """The (width, height) to which the first half of `mode` takes an image of this (width, height)."""
    width, height = size
    if mode == "resize_and_crop":
        width = height = load_size
    elif mode in ("scale_width", "scale_width_and_crop"):
        width, height = load_size, max(load_size * height // width, crop_size)
    elif mode == "scale_shortside_and_crop" and min(size) < load_size:
        scale = load_size / min(size)
        width, height = round(width * scale), round(height * scale)
    return (width, height) if crops(mode) else (_nearest_multiple(width), _nearest_multiple(height))


def resized(image: Image.Image, mode: str, load_size: int, crop_size: int) -> Image.Image:
    """The deterministic half of `mode`, bicubic. Raises `UserError`, which says the sizes, for an image that cannot be used."""
    width, height = target_size(image.size, mode, load_size, crop_size)
    was = f"it is {image.width} x {image.height} pixels"
    if crops(mode) and min(width, height) < crop_size:
        raise UserError(
            f"{was}, less than the {crop_size} x {crop_size} that --preprocess {mode} cuts out of it"
        )
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{was}, too small: the networks need {MIN_SIDE} x {MIN_SIDE}")
    if width * height > MAX_PIXELS:
        raise UserError(f"{was}, which --preprocess {mode} would enlarge to {width} x {height}")
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Preprocess:
    """How one run turns images into inputs.

    mode: one of `MODES`. load_size, crop_size: pixels. flip: mirror half of the training images. training: random crops
    and flips (else middle crops, no flips). n_epochs: after this epoch the resize goes straight to crop_size, so that
    resize_and_crop no longer crops (the decaying half of training); None: never. Impossible settings raise `UserError`.
    """

    mode: str = "resize_and_crop"
    load_size: int = 286
    crop_size: int = 256
    flip: bool = True
    training: bool = True
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"--preprocess {self.mode} is unknown; possible are {', '.join(MODES)}.")
        if self.mode == "none":
            return  # neither size plays a part
        if self.crop_size % MULTIPLE or self.crop_size < MIN_SIDE:
            nearest = max(MIN_SIDE, _nearest_multiple(self.crop_size))
            raise UserError(
                f"--crop_size {self.crop_size} cannot be used: the generator needs a multiple of {MULTIPLE}, "
                f"at least {MIN_SIDE}. Take {nearest}."
            )
        if crops(self.mode) and self.mode != "crop" and self.load_size < self.crop_size:
            raise UserError(
                f"--load_size {self.load_size} is less than --crop_size {self.crop_size}: nothing of that size can be cut "
                f"out. Make --load_size at least {self.crop_size}."
            )

    @property
    def crops(self) -> bool:
        return crops(self.mode)

    def load_size_at(self, epoch: int) -> int:
        """The size the resize of this epoch aims at, pixels."""
        settled = self.training and self.n_epochs is not None and epoch > self.n_epochs
        return self.crop_size if settled else self.load_size

    def resize(self, image: Image.Image, load_size: int) -> Image.Image:
        return resized(image, self.mode, load_size, self.crop_size)

    def draw_window(self, generator: random.Random, height: int, width: int) -> Window:
        """Where to cut a (height, width) image, and whether to mirror it.

        Always draws three numbers, so that options do not shift what is drawn after.
        """
        free = (height - self.crop_size, width - self.crop_size) if self.crops else (0, 0)
        top, left = (generator.randrange(room + 1) for room in free)
        flip = generator.random() < 0.5
        if not self.training:
            return free[0] // 2, free[1] // 2, False
        return top, left, flip and self.flip

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what the window cuts out of a (height, width) image."""
        return (self.crop_size, self.crop_size) if self.crops else (height, width)


def _nearest_multiple(side: int) -> int:
    return round(side / MULTIPLE) * MULTIPLE
