"""A history of translations for the discriminator (Shrivastava et al., CVPR 2017), behind `--pool_size`."""

from argparse import Namespace

import torch
from torch import Tensor, nn

from data.transforms import crops
from util.errors import UserError


class ImagePool(nn.Module):
    """Keeps up to `size` images on the device; once full, half of the queries return a random earlier one.

    Everything is computed on the device, so that a CUDA graph can hold a query; the buffers are saved and
    resumed. With size 0 queries return what they are given.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.zeros(size, 0, 0, 0))  # (size, C, H, W) from the first query on
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to show the discriminator in place of `images`; detached."""
        if self.size == 0:
            return images.detach()
        draws = torch.rand(len(images), device=images.device)
        places = torch.randint(self.size, (len(images),), device=images.device)
        return self.swap(images, draws, places)

    @torch.no_grad()
    def swap(self, images: Tensor, draws: Tensor, places: Tensor) -> Tensor:
        """A query with given random numbers, `draws` in [0, 1) and `places`, each (B,); images in order.

        A pool that is filling stores an image and returns it; later an image whose draw exceeds 0.5 is
        exchanged for the one at its place, and others are returned.
        """
        self._fit(images)
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

    def _fit(self, images: Tensor) -> None:
        if self.images.shape[1:] == images.shape[1:]:
            return
        if self.images.numel():
            raise UserError(f"--pool_size {self.size} keeps images of one size: use --pool_size 0")
        self.images = self.images.new_zeros(self.size, *images.shape[1:])

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if (images := state_dict.get(f"{prefix}images")) is not None:
            self.images = self.images.new_zeros(self.size, *images.shape[1:])
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_pool(opt: Namespace) -> None:
    """UserError where `--pool_size` cannot serve."""
    if opt.pool_size and not crops(opt.preprocess):
        raise UserError(f"--pool_size {opt.pool_size} keeps images of one size: use a cropping --preprocess")
