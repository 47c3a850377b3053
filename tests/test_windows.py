"""What a batch says of the part of each image that it shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from data.base_dataset import LARGE
from data.loader import Loader
from data.sampler import EpochSampler
from data.transforms import Preprocess
from data.unaligned_dataset import UnalignedDataset


@pytest.mark.parametrize("load_size", [20, 48])  # the larger one is cut before it travels
@pytest.mark.parametrize("mode", ["resize_and_crop", "none"])
def test_windows_name_the_part_of_the_image(tmp_path, load_size, mode):
    """A gradient image of which any crop can be read off again."""
    column, row = np.meshgrid(np.arange(20), np.arange(20))
    pixels = np.stack([10 * row, 10 * column, 0 * row], 2).astype(np.uint8)
    for folder in ("trainA", "trainB"):
        (tmp_path / folder).mkdir()
        for number in range(6):
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    dataset = UnalignedDataset(tmp_path, "train", Preprocess(mode, load_size=load_size, crop_size=16))
    assert load_size == 20 or load_size**2 > LARGE * 16**2
    mirrored = set()
    for batch in Loader(dataset, EpochSampler(6, 2, 0, shuffle=True), "cpu").epoch(1):
        for domain in "AB":
            assert batch[f"{domain}_windows"].shape == (2, 5)
            for image, (top, left, height, width, flip) in zip(
                batch[domain], batch[f"{domain}_windows"].tolist(), strict=True
            ):
                red, green = (
                    (image[channel] + 1) * 127.5 / 200 for channel in (0, 1)
                )  # position in the image
                green = green.flip(1) if flip else green
                mirrored.add(flip)
                shown = (red[0, 0], green[0, 0], red[-1, -1] - red[0, 0], green[-1, -1] - green[0, 0])
                pixel = height / image.shape[1]  # a pixel's centre is half a pixel inside
                expected = (top, left, height - pixel, width - pixel)
                assert torch.tensor(shown).tolist() == pytest.approx(expected, abs=0.06)
    assert mirrored == {0.0, 1.0}
