"""Crop, mirror and normalise a whole batch on the device: one gather, then bytes to [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)  # Rec. 601, as Pillow's grey


def crop_flip_normalise(images: Tensor, windows: Tensor, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Crop a window out of each image.

    Args:
        images: (B, 3, H, W) uint8, on any device, in any memory layout.
        windows: (B, 3) int64 on the same device: top and left in pixels, and flip (1: mirror left to right).
        size: (h, w) of the windows, which lie inside the images.
        channels: 3, or 1 for luminance.

    Returns:
        (B, channels, h, w) float32 in [-1, 1], contiguous.
    """
    assert channels in (1, 3), channels
    height, width = size
    device = images.device
    top, left, flip = windows[:, :, None].unbind(1)  # (B, 1) each
    rows = top + torch.arange(height, device=device)  # (B, h)
    columns = torch.arange(width, device=device)
    columns = left + torch.where(flip != 0, width - 1 - columns, columns)  # (B, w)
    batch = torch.arange(len(images), device=device)
    images = images.permute(0, 2, 3, 1)  # (B, H, W, 3)
    pixels = images[batch[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, h, w, 3)
    pixels = pixels.permute(0, 3, 1, 2).float().contiguous()  # (B, 3, h, w)
    if channels == 1:
        red, green, blue = (
            weight * colour for weight, colour in zip(LUMINANCE, pixels.split(1, 1), strict=True)
        )
        pixels = red + green + blue  # (B, 1, h, w)
    return pixels.mul_(1 / 127.5).sub_(1).clamp_(-1, 1)
