"""Images from disk to device. `create_loader` builds all of it from the options."""

from __future__ import annotations

import os
import sys
from argparse import Namespace

import torch

from data.datasets import DATASETS
from data.loader import Loader
from data.transforms import Preprocess
from util.console import say
from util.image_files import describe_grey_range, parse_grey_range


def create_loader(
    opt: Namespace, device: torch.device | str, *, rank: int = 0, world_size: int = 1
) -> Loader:
    """The loader of the options: in training shuffled, whole batches; at test every image once, by index.

    Raises `UserError` if the data set is missing, empty or impossible.
    """
    crops_end = opt.isTrain and not (opt.crop_late or opt.n_iterations or opt.n_iterations_decay)
    n_epochs = opt.n_epochs if crops_end else None
    whole = getattr(opt, "whole", False)  # test.py alone says it
    sizes = (opt.preprocess, opt.load_size, opt.crop_size)
    preprocess = Preprocess(*sizes, not opt.no_flip, opt.isTrain, n_epochs=n_epochs, whole=whole)
    names = ["seed", "direction", "serial_batches", "max_dataset_size", "on_bad_image"]
    names += ["domains", "own_domain"] if opt.dataset_mode == "multi" else []
    dataset = DATASETS[opt.dataset_mode](
        opt.dataroot,
        opt.phase,
        preprocess,
        cache_gb=opt.cache_gb if opt.isTrain else 0.0,  # at test each image is read once
        grey=parse_grey_range(opt.grey_range),
        **{name: getattr(opt, name) for name in names},
    )
    for domain, store in dataset.stores.items():
        if store.grey:
            say(f"note: domain {domain}: {describe_grey_range(store.grey)}", file=sys.stderr)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Loader(
        dataset,
        device,
        opt.batch_size,
        opt.seed,
        shuffle=opt.isTrain and not opt.serial_batches,
        rank=rank,
        world_size=world_size,
        drop_last=opt.isTrain,
        num_workers=min(opt.num_threads, cores),
        channels=(opt.input_nc, opt.output_nc),
    )
