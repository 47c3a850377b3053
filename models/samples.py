"""The images that a training shows in every epoch: the first test images, or else training images."""

from __future__ import annotations

import contextlib
import itertools
from argparse import Namespace

import numpy as np
import torch
from torch import Tensor, nn

from data import create_loader
from models.base_model import BaseModel
from util.errors import UserError
from util.images import image_grid, to_uint8

COUNT = 4
MOST_PIXELS = 512  # a side; of larger images the middle is shown


class Samples:
    """Translates the same images again and again, as test.py would, without a change of the model's state."""

    def __init__(self, opt: Namespace, model: BaseModel):
        self.model = model
        self.multiple = model.size_limits(opt)[0]
        self.images: list[Tensor] = []  # (1, C, H, W) each
        self.targets: list[Tensor] = []  # (1,) each, in a set of many domains: another one than the image's
        settings = {**vars(opt), "isTrain": False, "batch_size": 1, "num_threads": 0}
        if domains := getattr(opt, "domains", []):
            settings["max_dataset_size"] = max(1, COUNT // len(domains))  # of each
        for settings["phase"] in ("test", opt.phase):
            with contextlib.suppress(UserError):  # there are no such images
                batches = create_loader(Namespace(**settings), "cpu").epoch(1)
                for batch in itertools.islice(batches, COUNT):
                    self.images.append(self._middle(batch["A"]))
                    if "A_domain" in batch:
                        self.targets.append((batch["A_domain"] + 1) % len(domains))
                return

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """The images and their translations, each side by side: (H, W, 3) uint8 by label."""
        if not self.images:
            return {}
        net, place = self.model.translator(), self.model.place
        training = [module for module in net.modules() if module.training]
        net.eval()  # batch norm as it is, no dropout
        try:
            with self.model.autocast():
                numbered = enumerate(self.images)
                translations = [net(place(x), *self._condition(net, n)).float() for n, x in numbered]
        finally:
            for module in training:
                module.training = True
        images = {"sample_inputs": self.images, "samples": translations}
        return {name: image_grid([to_uint8(i) for i in many], COUNT) for name, many in images.items()}

    def _condition(self, net: nn.Module, number: int) -> list[Tensor]:
        """What the network takes besides an image: always the same style, or the image's target."""
        conditions = self.targets[number : number + 1]
        if self.model.styled:
            conditions = [torch.randn(1, net.style_dim, generator=torch.Generator().manual_seed(0))]
        return [condition.to(self.model.device) for condition in conditions]

    def _middle(self, image: Tensor) -> Tensor:
        """The middle of an image, of sides that the network takes."""
        for axis in (2, 3):
            length = image.shape[axis]
            side = min(length, MOST_PIXELS) // self.multiple * self.multiple
            image = image.narrow(axis, (length - side) // 2, side)
        return image
