"""Weights in the released format: `{latest|N|iter_N}_net_{G,D,F}.pth`, each a bare state dict of CPU tensors.

The names of the keys are those of the released QS-Attn and CUT code, so files go both ways. Reading one executes nothing that
it holds (`weights_only`), and what is wrong with it is told in the user's terms.
"""

from __future__ import annotations

import pickle
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

from models.architecture import KINDS, architecture, differences
from util.errors import UserError
from util.files import write_atomically

WRAPPERS = (
    "module.",
    "_orig_mod.",
)  # DataParallel's, DistributedDataParallel's and torch.compile's names for what they hold


def weights_file(folder: Path, epoch: str, network: str) -> Path:
    """Where the run in `folder` keeps a network's weights of `epoch` ("latest", "5", "iter_5000"; "*" for a glob)."""
    return folder / f"{epoch}_net_{network}.pth"


def saved_weights(folder: Path) -> list[Path]:
    """All weights files of the run in `folder`."""
    return sorted(folder.glob(weights_file(folder, "*", "*").name))


def checkpoint_file(checkpoints_dir: str | Path, name: str, epoch: str, network: str = "G") -> Path:
    """The weights file of a run. UserError where there is none, which lists what there is instead."""
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
        runs = sorted(
            {
                file.parent.relative_to(checkpoints_dir).as_posix()
                for file in Path(checkpoints_dir).rglob(f"*{end}")
            }
        )
        there = (
            f"--name can be {', '.join(runs[:20])}"
            if runs
            else "no run has saved weights there: train one with train.py"
        )
    raise UserError(f"there is no checkpoint {path}: {there}")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU, without the prefixes of wrappers. UserError for whatever is no such file."""
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"there is no weights file {path}: check --name, --epoch and --checkpoints_dir"
        ) from None
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower() or path.read_bytes()[:1] == b"\x80":  # a bare pickle begins so
            found = "it holds pickled code or objects, which are never executed here"
            raise UserError(
                f"cannot load {path}: {found}; save its bare state dict (tensors only) and load that"
            ) from None
        raise _not_a_checkpoint(path, error) from None
    except Exception as error:  # torch meets damaged files with exceptions of every type
        raise _not_a_checkpoint(path, error) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        found = (
            f"a dict of {', '.join(map(str, list(state)[:5]))}"
            if isinstance(state, dict)
            else f"a {type(state).__name__}"
        )
        raise UserError(
            f"cannot load {path}: it holds {found}, not the bare state dict of a network; save that one alone"
        )
    state = {_unwrapped(str(key)): value for key, value in state.items()}
    # Instance norms of old torch versions kept statistics that nothing used.
    return {key: value for key, value in state.items() if not _is_leftover_of_instance_norm(key, state)}


def load_weights(net: nn.Module, path: str | Path, opt: Namespace | None = None) -> None:
    """Load a released-format file into a network. The blur filters (`filt`), which are constants, may be missing.

    Args:
        opt: the options that built `net`, whose run is named in the message.

    Raises:
        UserError: the file is no checkpoint, or one of another architecture; the option that differs is named.
    """
    state = read_weights(path)
    own = {_unwrapped(key): value for key, value in net.state_dict().items()}
    filled = {**{key: value for key, value in own.items() if key.endswith(".filt")}, **state}
    shapes, wanted = (
        {key: tuple(value.shape) for key, value in tensors.items()} for tensors in (filled, own)
    )
    if shapes != wanted:
        run = f" of the run {opt.name}" if opt is not None and hasattr(opt, "name") else ""
        raise UserError(f"{path} does not fit the network{run}: {_explain(state, own, shapes, wanted)}")
    with torch.no_grad():
        for key, value in net.state_dict().items():
            value.copy_(filled[_unwrapped(key)])


def save_weights(net: nn.Module, path: str | Path) -> None:
    """Write the network's state dict to `path` as contiguous CPU tensors (float32), all of it or nothing. Raises OSError."""
    state = {}
    for key, value in net.state_dict().items():
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        # A copy, since torch.save would write all the storage that a view belongs to.
        state[_unwrapped(key)] = value.detach().to("cpu", dtype).clone(memory_format=torch.contiguous_format)
    write_atomically(Path(path), lambda temporary: torch.save(state, temporary))


def _unwrapped(key: str) -> str:
    for wrapper in WRAPPERS * 2:  # one may hold the other, in either order
        key = key.removeprefix(wrapper)
    return key


def _is_leftover_of_instance_norm(key: str, state: dict[str, Tensor]) -> bool:
    module, _, last = key.rpartition(".")
    return last in ("running_mean", "running_var", "num_batches_tracked") and f"{module}.weight" not in state


def _explain(state: dict, own: dict, shapes: dict[str, tuple], wanted: dict[str, tuple]) -> str:
    """Which options differ; where none is known to, the first key that does."""
    if not state:
        return "the file holds no weights at all"
    found = architecture(state)
    if not own:
        return f"the file holds {KINDS[found['network']]}, but these options build a network without weights"
    options = differences(found, architecture(own))
    if options:
        return "; ".join(options)
    key = next(key for key in [*wanted, *shapes] if shapes.get(key) != wanted.get(key))
    found, asked = (f"has shape {there[key]}" if key in there else "is missing" for there in (shapes, wanted))
    return f"{key} {found} in the file and {asked} in the network; load the file of the network these options describe"


def _not_a_checkpoint(path: Path, error: Exception) -> UserError:
    """What the file looks like instead."""
    if isinstance(
        error, (PermissionError, IsADirectoryError)
    ):  # but a truncated archive may end in another OSError
        return UserError(f"cannot read {path}: {error.strerror}; check the path and its permissions")
    with open(path, "rb") as file:
        beginning = file.read(200)
    fetch = "download or copy it again"
    if not beginning:
        found = "it is empty"
    elif beginning.lstrip()[:1] == b"<":
        found, fetch = (
            "it is a web page (HTML)",
            "the link led to a page and not to the file: download the file itself",
        )
    elif beginning.startswith(b"version https://git-lfs"):
        found, fetch = "it is a Git LFS pointer", "run git lfs pull to get the file itself"
    elif beginning.startswith(b"PK"):
        found = "it is cut short or damaged, or no file of torch.save"
    else:
        found = f"it is no file of torch.save (it begins with {beginning[:12]!r})"
    return UserError(f"cannot load {path}: {found}; {fetch}")
