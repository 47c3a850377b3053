"""From the networks' tensors to pictures: uint8 arrays and PNG files."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) in [-1, 1] as 8-bit RGB, (B, H, W, 3) uint8, on the same device.

    Values outside are clipped, NaN becomes black. With fewer than three channels the first is shown as grey,
    with more the first three.
    """
    images = images.detach()
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)  # (B, 3, H, W)
    images = torch.nan_to_num(images.float(), nan=-1.0).clamp(-1, 1)
    return ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()  # (B, H, W, 3)


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """`to_pixels` of an image (C, H, W), or of the first of a batch (B, C, H, W): (H, W, 3) on the host."""
    return to_pixels(images[:1] if images.ndim == 4 else images[None])[0].cpu().numpy()


def to_image(pixels: np.ndarray) -> Image.Image:
    """An array (H, W, C) uint8 as an image: grey for one channel, RGB for three."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Write an (H, W, 1 or 3) uint8 array as a PNG file; a missing folder is made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Training waits for this: weak compression takes a third of the time for a tenth more bytes.
    to_image(pixels).save(path, format="PNG", compress_level=1)


def image_grid(images: Sequence[np.ndarray], columns: int, side: int = 256) -> np.ndarray:
    """Images (h, w, 3) uint8 side by side in rows, on white, those larger than `side` reduced to it."""
    pictures = [Image.fromarray(image) for image in images]
    for picture in pictures:
        picture.thumbnail((side, side))
    width, height = (max(picture.size[axis] for picture in pictures) + 4 for axis in (0, 1))
    columns = min(columns, len(pictures))
    grid = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), "white")
    for number, picture in enumerate(pictures):
        grid.paste(picture, (number % columns * width + 2, number // columns * height + 2))
    return np.asarray(grid)
