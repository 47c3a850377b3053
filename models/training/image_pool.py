"""A history of translations for the discriminator (Shrivastava et al., CVPR 2017), behind `--pool_size`."""

from __future__ import annotations

import torch
from torch import Tensor


class ImagePool:
    """Keeps up to `size` images; once full, half of the images asked for are swapped against a random older one."""

    def __init__(self, size: int):
        self.size = size
        self.images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to show the discriminator instead of `images`; detached, of the same shape."""
        if self.size == 0:
            return images.detach()
        shown = []
        for image in images.detach():
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif torch.rand(()).item() < 0.5:
                place = int(torch.randint(self.size, ()).item())
                older, self.images[place] = self.images[place], image.clone()
                if older.is_cuda:  # it may have been loaded on another stream than this one
                    older.record_stream(torch.cuda.current_stream(older.device))
                image = older
            shown.append(image)
        return torch.stack(shown)
