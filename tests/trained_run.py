"""A run folder with a tiny generator of random weights, as train.py would have left it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import test as translation
from models import create_model
from models.weights import save_tensors, weights_file
from options.train_options import TrainOptions
from util.run.saved_options import write_options

SMALL = "--gpu_ids -1 --ngf 4 --ndf 4 --load_size 32 --crop_size 32".split()  # of any model
TINY = [*SMALL, "--netG", "resnet_4blocks"]


def make_run(checkpoints_dir: Path, *words: str, name: str = "run", networks: str = "Gg") -> Path:
    """Save the options and the weights of an untrained run, of networks with these initials; its folder."""
    options = TrainOptions()
    small = SMALL if {"munit", "stargan"} & {*words} else TINY
    opt = options.parse([*small, "--name", name, "--checkpoints_dir", str(checkpoints_dir), *words])
    torch.manual_seed(0)
    opt.init_gain = 0.5  # strong enough for translations that vary
    model = create_model(opt)
    folder = checkpoints_dir / name
    write_options(folder, opt, options.parser.defaults)
    for name in model.network_names:
        if name[0] in networks:
            save_tensors(model.networks[name].state_dict(), weights_file(folder, "latest", name))
    return folder


def picture(size: tuple[int, int] = (32, 32), mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth coloured picture of this (width, height) and mode; transparent here and there if it can be."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), np.uint8)
    image = Image.fromarray(coarse, "RGBA").resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode) if mode.endswith("A") else image.convert("RGB").convert(mode)


def draw(
    path: Path, size: tuple[int, int] = (32, 32), mode: str = "RGB", seed: int = 0, **save
) -> Image.Image:
    """Write a `picture`, with Pillow's options to save; returns it."""
    image = picture(size, mode, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **save)
    return image


def draw_set(root: Path, size: tuple[int, int] = (32, 32), **counts: int) -> Path:
    """A data set of so many different pictures in each folder, `testA=2`: testA/A0.png and testA/A1.png."""
    for place, (folder, count) in enumerate(counts.items()):
        for number in range(count):
            draw(root / folder / f"{folder[-1]}{number}.png", size, seed=100 * place + number)
    return root


def command_of(checkpoints: Path, results: Path, *base: object) -> Callable[..., int]:
    """test.py on the runs of a folder, with more words; it returns the exit status."""
    places = f"--checkpoints_dir={checkpoints}", f"--results_dir={results}"
    return lambda *words: translation.main(
        ["--gpu_ids=-1", "--num_threads=0", *places, *map(str, (*base, *words))]
    )
