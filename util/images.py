"""From the tensors of the networks to pictures people look at: uint8 arrays and PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """The first image of a batch as numbers a screen shows.

    Args:
        images: (B, C, H, W) or (C, H, W), any float type and device, values in [-1, 1]; what lies outside is
            clipped, NaN becomes black. Fewer than three channels: the first is shown as grey; more: three.

    Returns:
        (H, W, 3) uint8: -1 is 0, 1 is 255, rounded to the nearest.
    """
    image = images.detach()
    if image.ndim == 4:
        image = image[0]  # (C, H, W)
    image = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)  # (3, H, W)
    image = torch.nan_to_num(image.float(), nan=-1.0).clamp(-1, 1)
    pixels = ((image + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).contiguous().cpu().numpy()  # (H, W, 3)


def save_png(image: np.ndarray, path: str | Path) -> None:
    """Write an (H, W, 3) uint8 array as a PNG file, its folder made where missing. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Weak compression: a third of the time for a tenth more bytes, and training waits for this.
    Image.fromarray(image).save(path, format="PNG", compress_level=1)
