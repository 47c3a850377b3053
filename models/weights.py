"""Weights in the released format: `{latest|N|iter_N}_net_NAME.pth`, each a bare state dict of CPU tensors.

The names of the keys are those of the released QS-Attn and CUT code, so either code loads the other's files.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

from models.architecture import explain
from util.errors import UserError
from util.files import write_atomically
from util.weight_files import read_tensors, unwrapped


def weights_file(folder: Path, epoch: str, network: str) -> Path:
    """The file of a network's weights of `epoch`: "latest", "5", "iter_5000", or "*" for a glob."""
    return folder / f"{epoch}_net_{network}.pth"


def bare_generator(folder: Path, epoch: str, direction: str) -> str:
    """The generator of a folder without saved options: CycleGAN's G_A or MUNIT's gen_b if there is one, for
    "BtoA" G_B or gen_a; else G."""
    names = ("G_B", "gen_a") if direction == "BtoA" else ("G_A", "gen_b")
    return next((name for name in names if weights_file(folder, epoch, name).is_file()), "G")


def saved_weights(folder: Path) -> list[Path]:
    """All weights files of the run in `folder`."""
    return sorted(folder.glob(weights_file(folder, "*", "*").name))


def checkpoint_file(checkpoints_dir: str | Path, name: str, epoch: str, network: str = "G") -> Path:
    """The weights file of a run. UserError if there is none; it lists the epochs or runs that there are."""
    run = Path(checkpoints_dir) / name
    path = weights_file(run, epoch, network)
    if path.is_file():
        return path
    end = weights_file(run, "", network).name
    if run.is_dir():
        epochs = [file.name.removesuffix(end) for file in run.glob(f"*{end}")]
        epochs.sort(key=lambda epoch: (not epoch.isdecimal(), epoch.zfill(12)))
        there = f"--epoch can be {', '.join(epochs)}" if epochs else "the run has saved no weights yet"
    else:
        root = Path(checkpoints_dir)
        runs = sorted({file.parent.relative_to(root).as_posix() for file in root.glob(f"**/*{end}")})
        there = f"--name can be {', '.join(runs[:20])}" if runs else "train a run with train.py"
        there += "; test.py --list_pretrained lists models that need no training"
    raise UserError(f"there is no checkpoint {path}: {there}")


def load_weights(
    net: nn.Module, path: str | Path, opt: Namespace | None = None, part: str | None = None
) -> None:
    """Load a released-format file into a network.

    Args:
        opt: the options that built `net`, whose run is named in the message.
        part: which of several networks in the file, see `read_tensors`.

    Raises:
        UserError: the file is no checkpoint, or of another architecture; the option that differs is named.
    """
    state = read_tensors(path, part)
    if problem := misfit(net, state):
        run = f" of the run {opt.name}" if hasattr(opt, "name") else ""
        raise UserError(f"{path} does not fit the network{run}: {problem}")
    own = net.state_dict()
    net.load_state_dict(dict(zip(own, _completed(state, unwrapped(own)).values(), strict=True)))


def misfit(net: nn.Module, state: dict[str, Tensor]) -> str | None:
    """Why a state dict does not fit a network, in terms of options; None if it fits."""
    own = unwrapped(net.state_dict())
    if own and not state:
        return "the file holds no weights at all"
    state = _completed(unwrapped(state), own)
    shapes, wanted = ({key: tuple(value.shape) for key, value in s.items()} for s in (state, own))
    return None if shapes == wanted else explain(state, own)


def _completed(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as this version would have saved it, in the network's order.

    Older versions of torch kept statistics of instance norms that nothing used, as StarGAN's release does,
    and no counters of batch norms; blur filters are constants, which a file may lack.
    """
    kept = {key: value for key, value in state.items() if key in own or not _is_unused(key, state, own)}
    for key, value in own.items():
        if key.endswith((".filt", ".num_batches_tracked")):
            kept.setdefault(key, value)
        if value.ndim == 0 and key in kept and kept[key].numel() == 1:
            kept[key] = kept[key].reshape(())  # torch before 0.4 had no numbers without a dimension
    return {key: kept.pop(key) for key in own if key in kept} | kept


def _is_unused(key: str, state: dict[str, Tensor], own: dict[str, Tensor]) -> bool:
    """Whether a tensor is a statistic of an instance norm: of one without weights, or with weights here."""
    module, _, last = key.rpartition(".")
    is_statistic = last in ("running_mean", "running_var", "num_batches_tracked")
    return is_statistic and (f"{module}.weight" not in state or f"{module}.weight" in own)


def save_weights(net: nn.Module, path: str | Path) -> None:
    """Write the network's state dict to `path`, see `save_tensors`."""
    save_tensors(net.state_dict(), path)


def save_tensors(state: dict[str, Tensor], path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a state dict to `path` as contiguous CPU tensors, atomically; floating-point ones as `dtype`."""
    plain = {}
    for key, value in unwrapped(state).items():
        own = dtype if value.is_floating_point() else value.dtype
        # A copy: torch.save would write the whole storage of a view.
        plain[key] = value.detach().to("cpu", own).clone(memory_format=torch.contiguous_format)
    write_atomically(Path(path), lambda temporary: torch.save(plain, temporary))
