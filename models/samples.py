"""The images that a training shows in every epoch: the first test images, or else training images."""

import contextlib
import itertools
from argparse import Namespace

import numpy as np
import torch
from torch import Tensor

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
        self.inputs: list[list[Tensor]] = []  # an image (1, C, H, W), and its target or style
        multiple = model.size_limits(opt)[0]
        settings = {**vars(opt), "isTrain": False, "batch_size": 1, "num_threads": 0}
        if domains := getattr(opt, "domains", []):
            settings["max_dataset_size"] = max(1, COUNT // len(domains))  # of each
        for phase in ("test", opt.phase):
            with contextlib.suppress(UserError):  # there are no such images
                batches = create_loader(Namespace(**settings | {"phase": phase}), "cpu").epoch(1)
                for batch in itertools.islice(batches, COUNT):
                    image = batch["A"]
                    height, width = (min(n, MOST_PIXELS) // multiple * multiple for n in image.shape[2:])
                    top, left = (image.shape[2] - height) // 2, (image.shape[3] - width) // 2
                    inputs = [image[:, :, top : top + height, left : left + width]]
                    if "A_domain" in batch:  # its target is another one
                        inputs.append((batch["A_domain"] + 1) % len(domains))
                    elif model.styled:
                        style = torch.randn(1, opt.style_dim, generator=torch.Generator().manual_seed(0))
                        inputs.append(style)
                    self.inputs.append(inputs)
                return

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """The images and their translations, each side by side: (H, W, 3) uint8 by label."""
        if not self.inputs:
            return {}
        net = self.model.translator()
        training = [module for module in net.modules() if module.training]
        net.eval()  # batch norm as it is, no dropout
        try:
            with self.model.autocast():
                translations = [net(*map(self.model.place, inputs)).float() for inputs in self.inputs]
        finally:
            for module in training:
                module.training = True
        images = {"sample_inputs": [inputs[0] for inputs in self.inputs], "samples": translations}
        return {name: image_grid([to_uint8(i) for i in many], COUNT) for name, many in images.items()}
