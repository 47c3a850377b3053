"""From a decoded image to the network's input: the preprocess modes of CUT, each in two halves.

The first half, `resized`, is deterministic and works on PIL images, so its result can be cached. The second
half is a window, drawn from the sample's generator.

| mode | first half | second half |
|---|---|---|
| resize_and_crop | both sides to load_size | crop |
| crop | nothing | crop |
| scale_width | width to load_size, aspect kept, but at least crop_size high | whole |
| scale_width_and_crop | the same | crop |
| scale_shortside_and_crop | shorter side up to load_size where it is less; larger images stay | crop |
| none | nothing | whole |

Crops are squares of crop_size: at a random place in training, in the middle at test. Whole images are resized
to the nearest multiples of 4, which the generator needs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

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


def target_size(
    size: tuple[int, int], mode: str, load_size: int, crop_size: int, whole: bool = False
) -> tuple[int, int]:
    """The (width, height) to which the first half of `mode` resizes an image of `size`."""
    width, height = size
    if mode == "resize_and_crop":
        width = height = load_size
    elif mode in ("scale_width", "scale_width_and_crop"):
        width, height = load_size, max(load_size * height // width, crop_size)
    elif mode == "scale_shortside_and_crop" and min(size) < load_size:
        scale = load_size / min(size)
        width, height = round(width * scale), round(height * scale)
    if whole or not crops(mode):
        width, height = (round(side / MULTIPLE) * MULTIPLE for side in (width, height))
    return width, height


@dataclass(frozen=True)
class Preprocess:
    """How one run turns images into inputs. Raises `UserError` for impossible settings.

    Args:
        mode: one of `MODES`.
        flip: mirror half of the training images.
        training: random crops and flips (else middle crops, no flips).
        n_epochs: after this epoch (in the decaying half of training) images are resized to crop_size in the
            modes of `LATE_RESIZE`, so that resize_and_crop no longer crops; None: never.
        whole: take the whole resized image, also in modes that crop.
    """

    mode: str = "resize_and_crop"
    load_size: int = 286
    crop_size: int = 256
    flip: bool = True
    training: bool = True
    n_epochs: int | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.crops:
            return
        if self.crop_size % MULTIPLE or self.crop_size < MIN_SIDE:
            nearest = max(MIN_SIDE, round(self.crop_size / MULTIPLE) * MULTIPLE)
            raise UserError(
                f"--crop_size {self.crop_size} cannot be used: the networks need a multiple of {MULTIPLE}, "
                f"at least {MIN_SIDE}. Take {nearest}."
            )
        if self.mode != "crop" and self.load_size < self.crop_size:
            raise UserError(
                f"--load_size {self.load_size} is less than --crop_size {self.crop_size}: make it at least "
                f"{self.crop_size}."
            )

    @property
    def crops(self) -> bool:
        return crops(self.mode) and not self.whole

    def load_size_at(self, epoch: int) -> int:
        """The load size of this epoch, pixels."""
        late = self.training and self.n_epochs is not None and epoch > self.n_epochs
        return self.crop_size if late and self.mode in LATE_RESIZE else self.load_size

    def resize(self, image: Image.Image, load_size: int) -> Image.Image:
        """The deterministic half, bicubic. Raises `UserError` with the sizes for an unusable image."""
        size = target_size(image.size, self.mode, load_size, self.crop_size, self.whole)
        was = f"it is {image.width} x {image.height} pixels"
        if self.crops and min(size) < self.crop_size:
            raise UserError(f"{was}, and --preprocess {self.mode} crops {self.crop_size} x {self.crop_size}")
        if min(size) < MIN_SIDE:
            raise UserError(f"{was}, too small: the networks need {MIN_SIDE} x {MIN_SIDE}")
        return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)

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
