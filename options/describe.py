"""What a training is about to do, and what to do with it afterwards, in words."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from data.loader import Loader
from models.base_model import BaseModel
from options.saved import option_values


def describe(opt: Namespace, model: BaseModel, loader: Loader) -> str:
    """Options, networks with their parameter counts (with --verbose their modules too), and the data set's counts."""
    lines = ["options"]
    for name, value in sorted(option_values(opt).items()):
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        lines.append(f"  {name:>20}: {text}{'  (given)' if name in opt.given else ''}")
    lines += ["networks", *_networks(opt, model), "data", f"  {_data(loader)} on {model.device}"]
    return "\n".join(lines)


def banner(opt: Namespace, model: BaseModel, loader: Loader, folder: Path) -> str:
    """What starts now: model, device, data, length, and where to watch."""
    last = opt.n_epochs + opt.n_epochs_decay
    lines = [
        f"Training {opt.model} on {model.device}: {_data(loader)}, {last} epochs, batch size {opt.batch_size}.",
        f"Run folder: {folder}",
    ]
    if not opt.no_html:
        lines.append(f"Page: {folder / 'web' / 'index.html'}")
    if opt.verbose:
        lines += _networks(opt, model)
    return "\n".join(lines)


def closing(opt: Namespace, folder: Path, complete: bool) -> str:
    """Where the results are and what to type next."""
    where = f" --checkpoints_dir {opt.checkpoints_dir}" if "checkpoints_dir" in opt.given else ""
    data = f" --dataroot {opt.dataroot}" if "dataroot" in opt.given else ""
    gpu = f" --gpu_ids {','.join(map(str, opt.gpu_ids)) or -1}" if "gpu_ids" in opt.given else ""
    commands = [("Translate", f"python test.py --name {opt.name}{where}{gpu}")]
    if not complete:
        commands.append(("Continue", f"python train.py --name {opt.name}{where}{data}{gpu} --continue_train"))
    lines = [] if opt.no_html else [f"Page: {folder / 'web' / 'index.html'}"]
    return "\n".join(lines + [f"{what}: {command}" for what, command in commands])


def _networks(opt: Namespace, model: BaseModel) -> list[str]:
    lines = []
    for name, net in model.networks.items():
        if opt.verbose:
            lines.append(str(net))
        lines.append(f"  net{name}: {sum(p.numel() for p in net.parameters()) / 1e6:.3f} M parameters")
    return lines


def _data(loader: Loader) -> str:
    counts = ", ".join(f"{count} {domain}" for domain, count in loader.dataset.sizes.items())
    return f"{counts}; {len(loader)} steps per epoch"
