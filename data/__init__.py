"""Images from disk to device. `create_loader` builds all of it from the options.

transforms  the preprocess modes: a resize that can be cached, and a window drawn for each sample
images      the files of one folder, decoded, resized and cached
datasets    which images make a sample: unaligned, aligned, single; where they are
loader      the order of an epoch, batches made by worker processes, their copy to the device
augment     what is computed on the device: mirroring, normalisation, changes of colour
preflight   what is wrong with a data set, reported before training
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace

import torch

from data.datasets import AlignedDataset, BaseDataset, DomainsDataset, SingleDataset, UnalignedDataset
from data.loader import EpochSampler, Loader
from data.transforms import Preprocess
from util.console import say
from util.image_files import describe_grey_range, parse_grey_range

DATASETS: dict[str, type[BaseDataset]] = {
    "unaligned": UnalignedDataset,
    "aligned": AlignedDataset,
    "single": SingleDataset,
    "multi": DomainsDataset,
}


def create_dataset(opt: Namespace) -> BaseDataset:
    """The data set of the options. Raises `UserError` if it is missing, empty or impossible."""
    crops_end = opt.isTrain and not (opt.crop_late or opt.n_iterations or opt.n_iterations_decay)
    preprocess = Preprocess(
        mode=opt.preprocess,
        load_size=opt.load_size,
        crop_size=opt.crop_size,
        flip=not opt.no_flip,
        training=opt.isTrain,
        n_epochs=opt.n_epochs if crops_end else None,
        whole=getattr(opt, "whole", False),  # test.py alone says it
    )
    many = {"domains": opt.domains, "own_domain": opt.own_domain} if opt.dataset_mode == "multi" else {}
    dataset = DATASETS[opt.dataset_mode](
        opt.dataroot,
        opt.phase,
        preprocess,
        seed=opt.seed,
        direction=opt.direction,
        serial_batches=opt.serial_batches,
        max_dataset_size=opt.max_dataset_size,
        on_bad_image=opt.on_bad_image,
        cache_gb=opt.cache_gb if opt.isTrain else 0.0,  # at test each image is read once
        grey=parse_grey_range(opt.grey_range),
        **many,
    )
    for domain, store in dataset.stores.items():
        if store.grey:
            say(f"note: domain {domain}: {describe_grey_range(store.grey)}", file=sys.stderr)
    return dataset


def create_loader(
    opt: Namespace, device: torch.device | str, *, rank: int = 0, world_size: int = 1
) -> Loader:
    """The loader of the options: in training shuffled, whole batches; at test every image once, by index."""
    dataset = create_dataset(opt)
    sampler = EpochSampler(
        len(dataset),
        opt.batch_size,
        opt.seed,
        shuffle=opt.isTrain and not opt.serial_batches,
        rank=rank,
        world_size=world_size,
        drop_last=opt.isTrain,
    )
    channels = {"A": opt.input_nc, "B": opt.output_nc}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Loader(dataset, sampler, device, workers=min(opt.num_threads, cores), channels=channels)
