"""A history of translations for the discriminator (Shrivastava et al., CVPR 2017, sec. 2.3), behind `--pool_size`."""

from __future__ import annotations

from argparse import Namespace

import torch
from torch import Tensor, nn

from data.transforms import crops
from util.errors import UserError


class ImagePool(nn.Module):
    """Keeps up to `size` images on the device; once it is full, half of the queries return a random earlier image.

    Everything is computed on the device from torch's default generator, so that a CUDA graph can hold a query. The
    buffers are the pool's state: `state_dict` saves it, and a resumed run goes on with the same images.

    Args:
        size: the number of images kept; 0: queries return what they are given.
        shape: (C, H, W) of an image.
    """

    def __init__(self, size: int, shape: tuple[int, int, int]):
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @classmethod
    def of(cls, opt: Namespace, channels: int | None = None) -> ImagePool:
        """The pool that `--pool_size` and `--crop_size` ask for, of images with `channels` (default: `--output_nc`)."""
        size = (opt.crop_size, opt.crop_size) if opt.pool_size else (0, 0)
        return cls(opt.pool_size, (opt.output_nc if channels is None else channels, *size))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to show the discriminator in place of `images`; detached."""
        if self.size == 0:
            return images.detach()
        draws = torch.rand(len(images), device=images.device)
        places = torch.randint(self.size, (len(images),), device=images.device)
        return self.swap(images, draws, places)

    @torch.no_grad()
    def swap(self, images: Tensor, draws: Tensor, places: Tensor) -> Tensor:
        """As a query, with its random numbers given: for each image, in order,

        - while the pool is filling, store it and return it;
        - else, if `draws` (B,) in [0, 1) exceeds 0.5, return the image stored at `places` (B,) and store this one there;
        - else return it.
        """
        shown = []
        for image, draw, place in zip(images.detach(), draws, places, strict=True):
            filling = self.count < self.size
            place = torch.where(filling, self.count, place).view(1)
            stored = self.images.index_select(0, place)[0]
            swapped = ~filling & (draw > 0.5)
            shown.append(torch.where(swapped, stored.to(image.dtype), image))
            kept = torch.where(filling | swapped, image.to(stored.dtype), stored)
            self.images.index_copy_(0, place, kept[None])
            self.count += filling
        return torch.stack(shown)


def check_pool(opt: Namespace) -> None:
    """UserError where `--pool_size` cannot serve: its images all have one size."""
    if opt.pool_size and not crops(opt.preprocess):
        raise UserError(
            f"--pool_size {opt.pool_size} keeps images of one size, but --preprocess {opt.preprocess} gives images "
            "of any size: use a mode that crops, such as resize_and_crop, or --pool_size 0"
        )
