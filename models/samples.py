"""The images that a training shows in every epoch: the first test images, or else training images."""

import contextlib
import itertools
from argparse import Namespace

import numpy as np
from torch import Tensor

from data import create_loader
from models.base_model import BaseModel
from models.translator import Translator
from util.errors import UserError
from util.images import image_grid, to_uint8

COUNT = 4
MOST_PIXELS = 512  # a side; of larger images the middle is shown


class Samples:
    """Translates the same images again and again, as test.py would, without a change of the model's state."""

    def __init__(self, opt: Namespace, model: BaseModel):
        settings = {**vars(opt), "isTrain": False, "batch_size": 1, "num_threads": 0, "translate_size": None}
        self.net = model.translator()
        translator = Translator(self.net, model.device, Namespace(**settings), model.size_limits(opt)[0])
        self.inputs: list[tuple[Tensor, Translator]] = []  # an image (1, C, H, W), and what translates it
        if domains := translator.domains:
            settings["max_dataset_size"] = max(1, COUNT // len(domains))  # of each
        for phase in ("test", opt.phase):
            with contextlib.suppress(UserError):  # there are no such images
                batches = create_loader(Namespace(**settings | {"phase": phase}), "cpu").epoch(1)
                for batch in itertools.islice(batches, COUNT):
                    height, width = (min(n, MOST_PIXELS) for n in batch["A"].shape[2:])
                    top, left = (batch["A"].shape[2] - height) // 2, (batch["A"].shape[3] - width) // 2
                    image = batch["A"][:, :, top : top + height, left : left + width]
                    if domains:  # its target is another one
                        translator = translator.with_domain(domains[(batch["A_domain"] + 1) % len(domains)])
                    self.inputs.append((image, translator))
                return

    def pictures(self) -> dict[str, np.ndarray]:
        """The images and their translations, each side by side: (H, W, 3) uint8 by label."""
        if not self.inputs:
            return {}
        training = [module for module in self.net.modules() if module.training]
        self.net.eval()  # batch norm as it is, no dropout
        try:
            translations = [of_image.run(image.to(of_image.device)) for image, of_image in self.inputs]
        finally:
            for module in training:
                module.training = True
        images = {"sample_inputs": [image for image, _ in self.inputs], "samples": translations}
        return {name: image_grid([to_uint8(i) for i in many], COUNT) for name, many in images.items()}
