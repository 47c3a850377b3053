"""What a training is about to do, in words: for --dry_run and --verbose."""

from __future__ import annotations

from argparse import Namespace

from data.loader import Loader
from models.cut_model import CUTModel
from options.base_options import option_values


def describe(opt: Namespace, model: CUTModel, loader: Loader) -> str:
    """Options, networks with their parameter counts (with --verbose their modules too), and the data set's counts."""
    lines = ["options"]
    for name, value in sorted(option_values(opt).items()):
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        lines.append(f"  {name:>20}: {text}{'  (given)' if name in opt.given else ''}")
    lines.append("networks")
    for name, net in model.networks.items():
        if opt.verbose:
            lines.append(str(net))
        lines.append(f"  net{name}: {sum(p.numel() for p in net.parameters()) / 1e6:.3f} M parameters")
    counts = ", ".join(f"{count} {domain}" for domain, count in loader.dataset.sizes.items())
    lines.append(f"data\n  {counts}; {len(loader)} steps an epoch on {model.device}")
    return "\n".join(lines)
