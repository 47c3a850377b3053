"""From samples to a batch in host memory, in the process that decoded them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.base_dataset import BaseDataset, Part, View
from data.sampler import SampleKey
from data.transforms import Window
from util.errors import UserError
from util.image_files import ImageError


@dataclass
class Stack:
    """One domain of a batch: pixels (B, H, W, 3) uint8, a window of `size` (h, w) in each, and the files."""

    pixels: Tensor
    windows: list[Window]
    size: tuple[int, int]
    paths: list[str]
    parts: list[Part]


@dataclass
class HostBatch:
    """The stacks by domain (none if no sample is left), and the errors of files that were not used."""

    stacks: dict[str, Stack]
    bad: list[ImageError]


def stack(views: Sequence[View]) -> Stack:
    """Stack the views of one domain, padding smaller images below and to the right, outside of every window.

    Raises `UserError` if the windows differ in size.
    """
    size = views[0].size
    for view in views:
        if view.size != size:
            (first_height, first_width), (height, width) = size, view.size
            raise UserError(
                f"the images {views[0].path!r} ({first_width} x {first_height}) and {view.path!r} "
                f"({width} x {height}) differ in size and cannot be in one batch. Use --batch_size 1 or a "
                "--preprocess that crops."
            )
    if len(views) == 1:
        pixels = views[0].pixels[None]
    else:
        height, width = (max(view.pixels.shape[axis] for view in views) for axis in (0, 1))
        pixels = np.zeros((len(views), height, width, 3), np.uint8)
        for place, view in zip(pixels, views, strict=True):
            place[: view.pixels.shape[0], : view.pixels.shape[1]] = view.pixels
    pixels = np.require(pixels, requirements=["C", "W"])  # Pillow's own arrays are read-only
    windows, paths, parts = ([getattr(view, name) for view in views] for name in ("window", "path", "part"))
    return Stack(torch.from_numpy(pixels), windows, size, paths, parts)


class BatchMaker(Dataset):
    """The data set that torch's DataLoader gets: a list of keys in, a `HostBatch` out.

    A `UserError` is returned, not raised: DataLoader would wrap it in the worker's traceback.
    """

    def __init__(self, dataset: BaseDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: list[SampleKey]) -> HostBatch | UserError:
        samples, bad = [], []
        try:
            for key in keys:
                try:
                    samples.append(self.dataset[key])
                except ImageError as error:
                    if self.dataset.on_bad_image == "stop":
                        raise
                    bad.append(error)
            bad.extend(error for sample in samples for error in sample.replaced)
            domains = samples[0].views if samples else ()
            return HostBatch(
                {domain: stack([sample.views[domain] for sample in samples]) for domain in domains}, bad
            )
        except UserError as error:
            return error
