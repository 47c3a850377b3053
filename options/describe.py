"""What a training is about to do, and how to use it afterwards, in words."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch

from data.loader import Loader
from models.base_model import BaseModel
from util import distributed
from util.arguments import Option, as_text
from util.run.length import Length


def describe(opt: Namespace, table: Mapping[str, Option], model: BaseModel, loader: Loader) -> str:
    """The options that act, networks with parameter counts (--verbose: and modules), images and steps.

    Args:
        table: the table of options.
    """
    lines = ["options"]
    for name, option in sorted(table.items()):
        acts = opt.model in (option.only or {}).get("model", (opt.model,)) and name not in model.lacking
        if acts and (option.scope != "call" or name in opt.given):
            given = "  (given)" if name in opt.given else ""
            lines.append(f"  {name:>20}: {as_text(getattr(opt, name))}{given}")
    length = Length.of(opt)
    steps = length.total if length.unit == "iterations" else length.total * len(loader)
    lines += ["networks", *_networks(opt, model), "data", f"  {_data(loader)} on {model.device}"]
    return "\n".join([*lines, "training", f"  {length}, {steps} steps"])


def banner(opt: Namespace, model: BaseModel, loader: Loader, folder: Path, epoch: int) -> str:
    """What starts now: model, device, data, length, and where to watch.

    Args:
        epoch: the first one to train.
    """
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
    processes, length = distributed.world_size(), Length.of(opt)
    together = f" in each of {processes} processes" if processes > 1 else ""
    by_epochs = length.unit == "epochs"
    how_long = f"epochs:     {epoch} to {length.total}" if by_epochs else f"length:     {length}"
    lines = [
        f"Training {opt.name} (--model {opt.model}) on {device}",
        f"  data:       {opt.dataroot}: {_data(loader)}",
        f"  {how_long}, batch size {opt.batch_size}{together}",
        f"  run folder: {folder}",
    ]
    if not opt.no_html:
        lines.append(f"  page:       {_page(folder)}")
    if opt.verbose:
        lines += _networks(opt, model)
    return "\n".join(lines)


def closing(opt: Namespace, folder: Path, complete: bool) -> str:
    """Where the page is, and the commands that translate with the run and continue it."""
    of_the_call = []
    if "checkpoints_dir" in opt.given:
        of_the_call += ["--checkpoints_dir", opt.checkpoints_dir]
    if "gpu_ids" in opt.given:
        of_the_call += ["--gpu_ids", ",".join(map(str, opt.gpu_ids)) or "-1"]
    words = shlex.join(["--name", opt.name, *of_the_call])
    lines = [] if opt.no_html else [f"Page:      {_page(folder)}"]
    lines.append(f"Translate: python test.py {words}")
    if not complete:
        local = os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size())
        launcher = f"torchrun --nproc_per_node={local}" if distributed.world_size() > 1 else "python"
        lines.append(f"Continue:  {launcher} train.py {words} --continue_train")
    return "\n".join(lines)


def _page(folder: Path) -> Path:
    return folder / "web" / "index.html"


def _networks(opt: Namespace, model: BaseModel) -> list[str]:
    lines = []
    for name, net in model.networks.items():
        if opt.verbose:
            lines.append(str(net))
        lines.append(f"  net{name}: {sum(p.numel() for p in net.parameters()) / 1e6:.3f} M parameters")
    return lines


def _data(loader: Loader) -> str:
    counts = ", ".join(f"{count} images {domain}" for domain, count in loader.dataset.sizes.items())
    return f"{counts}; {len(loader)} steps per epoch"
