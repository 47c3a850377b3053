"""Translate images of any size with a trained generator, from Python:

    from PIL import Image
    from models.inference import load_generator

    translate = load_generator("horse2zebra_qsattn_global")  # a run, or the path of a ..._net_G.pth
    translate(Image.open("horse.jpg")).save("zebra.png")

test.py translates with the same `Translator`.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.augment import crop_flip_normalise
from data.transforms import MIN_SIDE
from models import create_model
from models.architecture import KINDS, architecture
from models.build import build_generator, size_multiple
from models.weights import checkpoint_file, load_weights, read_weights
from util.errors import UserError
from util.host_copy import HostCopy
from util.images import to_pixels
from util.translate.photo import finished, to_photo


class Translator:
    """A generator that takes images of any size: `translator(image)` is the translation, of exactly the same size.

    Args:
        net: maps (B, input_nc, H, W) to (B, output_nc, H, W) in [-1, 1], on `device`, for sides that are multiples of `multiple`.
        multiple: 4 for a ResNet generator.
        input_nc: 3, or 1 for grey input.
        precision: "bf16" computes convolutions in bfloat16; else what the backend does in float32.
    """

    def __init__(
        self,
        net: nn.Module,
        device: torch.device,
        *,
        multiple: int = 4,
        input_nc: int = 3,
        precision: str = "fp32",
        channels_last: bool = False,
    ):
        self.net, self.device, self.multiple, self.input_nc = net, device, multiple, input_nc
        self._bf16 = precision == "bf16"
        self._layout = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, image: Image.Image) -> Image.Image:
        """Translate a Pillow image of any mode and size: RGB of its size, upright, with the image's alpha channel if it has one."""
        photo = to_photo(image)
        return finished(self.translate([photo.pixels]).numpy()[0], photo.alpha)

    def translate(self, pixels: Sequence[np.ndarray]) -> HostCopy:
        """Translate images (H, W, 3) uint8 of one size. On CUDA it returns before they are done."""
        batch = torch.from_numpy(np.stack(pixels))  # (B, H, W, 3)
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        batch = batch.to(self.device).permute(0, 3, 1, 2)  # (B, 3, H, W)
        whole = torch.zeros(
            len(batch), 3, dtype=torch.int64, device=self.device
        )  # windows: from 0, 0, not mirrored
        images = crop_flip_normalise(batch, whole, tuple(batch.shape[2:]), self.input_nc)
        return HostCopy(to_pixels(self.run(images)))

    @torch.inference_mode()
    def run(self, images: Tensor) -> Tensor:
        """Translate (B, input_nc, H, W) in [-1, 1], any H and W, to (B, output_nc, H, W) float32.

        Sides that the network cannot take are extended by reflection, and the result is cut to the size again.
        """
        height, width = images.shape[2:]
        rows, top = self._extended(height)
        columns, left = self._extended(width)
        images = images if len(rows) == height else images[:, :, rows]
        images = images if len(columns) == width else images[:, :, :, columns]
        images = images.contiguous(memory_format=self._layout)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            output = self.net(images)
        return output[:, :, top : top + height, left : left + width].float()

    def _extended(self, length: int) -> tuple[Tensor, int]:
        """Which position of `length` each of the extended ones mirrors, and how many come before the first."""
        whole = -(-max(length, MIN_SIDE) // self.multiple) * self.multiple
        before = (whole - length) // 2
        period = max(2 * (length - 1), 1)  # to the end and back; one pixel only repeats
        positions = torch.arange(-before, whole - before, device=self.device).remainder(period)
        return torch.minimum(positions, period - positions), before


def load_generator(
    name_or_path: str | os.PathLike,
    checkpoints_dir: str | os.PathLike = "./checkpoints",
    epoch: str | int = "latest",
    device: torch.device | str | None = None,
) -> Translator:
    """The generator of a run, or of a weights file (`*.pth`, also of the released code and of CUT), ready to translate.

    The architecture is read off the weights; no options are needed. Dropout is off, and a batch norm uses its running
    statistics, as with test.py --eval.

    Args:
        device: None for a GPU if there is one.

    Raises:
        UserError: there is no such run or file, or it holds no generator.
    """
    path = Path(name_or_path)
    if path.suffix != ".pth":
        path = checkpoint_file(checkpoints_dir, str(name_or_path), str(epoch))
    found = architecture(read_weights(path))
    if "netG" not in found:
        raise UserError(f"{path} holds {KINDS[found['network']]}, not a generator: give a ..._net_G.pth")
    opt = Namespace(**{"no_dropout": True, **found}, init_type="xavier", init_gain=0.02, direction="AtoB")
    net = build_generator(opt)
    load_weights(net, path)
    device = torch.device(device) if device is not None else _best_device()
    net.to(device).eval().requires_grad_(False)
    return Translator(net, device, multiple=size_multiple(opt.netG), input_nc=opt.input_nc)


def translator_of_run(opt: Namespace) -> Translator:
    """The generator that the options of test.py name, in training mode unless `--eval`, as in the released code.

    Raises:
        UserError: there is no such checkpoint, or the options ask for another architecture than it has.
    """
    path = checkpoint_file(opt.checkpoints_dir, opt.name, opt.epoch)
    model = create_model(opt)
    load_weights(model.netG, path, opt)
    return Translator(
        model.netG.train(not opt.eval).requires_grad_(False),
        model.device,
        multiple=size_multiple(opt.netG),
        input_nc=opt.input_nc,
        precision=opt.precision,
        channels_last=opt.channels_last,
    )


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
