"""From the tensors of the networks to pictures people look at: uint8 arrays and PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """A batch as numbers a screen shows, on the device it is on.

    Args:
        images: (B, C, H, W), any float type and device, values in [-1, 1]; what lies outside is clipped, NaN becomes
            black. Fewer than three channels: the first is shown as grey; more: three.

    Returns:
        (B, H, W, 3) uint8: -1 is 0, 1 is 255, rounded to the nearest.
    """
    images = images.detach()
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)  # (B, 3, H, W)
    images = torch.nan_to_num(images.float(), nan=-1.0).clamp(-1, 1)
    return ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()  # (B, H, W, 3)


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """The first image of a batch (B, C, H, W), or an image (C, H, W), as `to_pixels` but (H, W, 3) on the host."""
    return to_pixels(images[:1] if images.ndim == 4 else images[None])[0].cpu().numpy()


def save_png(image: np.ndarray, path: str | Path) -> None:
    """Write an (H, W, 3) uint8 array as a PNG file, its folder made where missing. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Weak compression: a third of the time for a tenth more bytes, and training waits for this.
    Image.fromarray(image).save(path, format="PNG", compress_level=1)
