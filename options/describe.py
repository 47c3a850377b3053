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
from util.run.progress import Length


def describe(opt: Namespace, table: Mapping[str, Option], model: BaseModel) -> str:
    """The options that act on a training, one a line."""
    lines = ["options"]
    for name, option in sorted(table.items()):
        acts = opt.model in (option.only or {}).get("model", (opt.model,)) and name not in model.lacking
        if acts and (option.scope != "call" or name in opt.given):
            given = "  (given)" if name in opt.given else ""
            lines.append(f"  {name:>20}: {as_text(getattr(opt, name))}{given}")
    return "\n".join(lines)


def banner(opt: Namespace, model: BaseModel, loader: Loader, folder: Path, epoch: int) -> str:
    """What starts now, with the epoch `epoch`: model, networks, device, data, length, and where to watch."""
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
    counts = ", ".join(f"{count} images {domain}" for domain, count in loader.dataset.sizes.items())
    length, processes = Length.of(opt), distributed.world_size()
    how_long = (
        f"epochs:     {epoch} to {length.total}, {(length.total - epoch + 1) * len(loader)} steps"
        if length.unit == "epochs"
        else f"length:     {length}"
    )
    together = f" in each of {processes} processes" if processes > 1 else ""
    lines = [
        f"Training {opt.name} (--model {opt.model}) on {device}",
        f"  data:       {opt.dataroot}: {counts}; {len(loader)} steps per epoch",
        f"  {how_long}, batch size {opt.batch_size}{together}",
        f"  run folder: {folder}",
    ]
    if not opt.no_html:
        lines.append(f"  page:       {folder / 'web' / 'index.html'}")
    for name, net in model.networks.items():
        if opt.verbose:
            lines.append(str(net))
        if opt.verbose or opt.dry_run:
            lines.append(f"  net{name}: {sum(p.numel() for p in net.parameters()) / 1e6:.3f} M parameters")
    return "\n".join(lines)


def closing(opt: Namespace, folder: Path, complete: bool) -> str:
    """Where the page is, and the commands that translate with the run and continue it."""
    words = ["--name", opt.name]
    if "checkpoints_dir" in opt.given:
        words += ["--checkpoints_dir", opt.checkpoints_dir]
    if "gpu_ids" in opt.given:
        words += ["--gpu_ids", as_text(opt.gpu_ids) or "-1"]
    lines = [] if opt.no_html else [f"Page:      {folder / 'web' / 'index.html'}"]
    lines.append(f"Translate: python test.py {shlex.join(words)}")
    if not complete:
        local = os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size())
        launcher = f"torchrun --nproc_per_node={local}" if distributed.world_size() > 1 else "python"
        lines.append(f"Continue:  {launcher} train.py {shlex.join(words)} --continue_train")
    return "\n".join(lines)
