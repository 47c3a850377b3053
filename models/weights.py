"""Weights in the released format: `{latest|N|iter_N}_net_NAME.pth`, each a bare state dict of CPU tensors.

The names of the keys are those of the released QS-Attn and CUT code, so either code loads the other's files.
Reading a file executes nothing in it (`weights_only`), checks its checksums, and reports what is wrong in
terms of options.
"""

from __future__ import annotations

import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

from models.architecture import KINDS, architecture, differences
from models.pretrained import pretrained_names
from util.errors import UserError
from util.files import verify_archive, write_atomically

# Prefixes that DataParallel, DistributedDataParallel and torch.compile give to a network's keys.
WRAPPERS = ("module.", "_orig_mod.")


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
        runs = sorted(
            {
                file.parent.relative_to(checkpoints_dir).as_posix()
                for file in Path(checkpoints_dir).rglob(f"*{end}")
                if not file.parent.name.startswith(".")  # a run that is set aside
            }
        )
        there = (
            f"--name can be {', '.join(runs[:20])}"
            if runs
            else "no run has saved weights there: train one with train.py"
        )
        if names := pretrained_names():
            there += f"; or translate with a model that is here: test.py --pretrained {names[0]}"
    raise UserError(f"there is no checkpoint {path}: {there}")


def read_weights(path: str | Path, part: str | None = None) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU, without the prefixes of wrappers.

    Args:
        part: the name of one of several state dicts in the file. MUNIT's released code saves its generators
            as "a" and "b" of one file.

    Raises:
        UserError: the file is missing, damaged, or no state dict of finite numbers.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if zipfile.is_zipfile(path):  # files older than torch 1.6 are none, and have no checksums
            verify_archive(path)  # torch.load does not check them
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
    except Exception as error:  # torch raises exceptions of many types for damaged files
        raise _not_a_checkpoint(path, error) from None
    if part is not None:
        if not isinstance(state, dict) or part not in state:
            raise UserError(
                f"cannot load {path}: it holds no networks a and b, as files of MUNIT's released code that "
                "end in .pt do; name a file of one network EPOCH_net_NAME.pth"
            )
        state = state[part]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        if isinstance(state, dict) and state.keys() == {"a", "b"}:
            raise UserError(
                f"cannot load {path}: it holds two networks, a and b, as MUNIT's released code saves them; "
                "save each alone, as EPOCH_net_gen_a.pth and EPOCH_net_gen_b.pth (or dis_a and dis_b). "
                "load_generator also takes the file of both generators, if its name ends in .pt"
            )
        found = (
            f"a dict of {', '.join(map(str, list(state)[:5]))}"
            if isinstance(state, dict)
            else f"a {type(state).__name__}"
        )
        raise UserError(
            f"cannot load {path}: it holds {found}, not the bare state dict of a network; save that one alone"
        )
    state = {_unwrapped(str(key)): value for key, value in state.items()}
    _check_numbers(path, state)
    # Instance norms of old torch versions kept statistics that nothing used.
    return {key: value for key, value in state.items() if not _is_leftover_of_instance_norm(key, state)}


def _check_numbers(path: Path, state: dict[str, Tensor]) -> None:
    """UserError for tensors that are not plain arrays of finite numbers."""
    for key, value in state.items():
        kinds = {
            "sparse": value.layout != torch.strided,
            "quantised": value.is_quantized,
            "meta (without data)": value.is_meta,
            "complex": value.is_complex(),
        }
        if found := [kind for kind, is_so in kinds.items() if is_so]:
            raise UserError(
                f"cannot load {path}: {key} is a {found[0]} tensor; save the weights as plain dense tensors, "
                "of float32 for instance"
            )
        if value.is_floating_point() and not value.float().isfinite().all():
            raise UserError(
                f"cannot load {path}: {key} holds numbers that are not finite (NaN or infinity); load the "
                "weights of an earlier --epoch"
            )


def load_weights(
    net: nn.Module, path: str | Path, opt: Namespace | None = None, part: str | None = None
) -> None:
    """Load a released-format file into a network. Its blur filters (`filt`), constants, may be missing.

    Args:
        opt: the options that built `net`, whose run is named in the message.
        part: which of several networks in the file, see `read_weights`.

    Raises:
        UserError: the file is no checkpoint, or of another architecture; the option that differs is named.
    """
    state = read_weights(path, part)
    if problem := misfit(net, state):
        run = f" of the run {opt.name}" if opt is not None and hasattr(opt, "name") else ""
        raise UserError(f"{path} does not fit the network{run}: {problem}")
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if (saved := state.get(_unwrapped(key))) is not None:  # a filter may be missing
                value.copy_(saved)


def misfit(net: nn.Module, state: dict[str, Tensor]) -> str | None:
    """Why a state dict does not fit a network, in terms of options; None if it fits."""
    state = {_unwrapped(key): value for key, value in state.items()}
    own = {_unwrapped(key): value for key, value in net.state_dict().items()}
    filled = {**{key: value for key, value in own.items() if key.endswith(".filt")}, **state}
    shapes, wanted = (
        {key: tuple(value.shape) for key, value in tensors.items()} for tensors in (filled, own)
    )
    return None if shapes == wanted else _explain(state, own, shapes, wanted)


def save_weights(net: nn.Module, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the network's state dict to `path` as contiguous CPU tensors, atomically.

    Args:
        dtype: of the numbers that are not integers. A file of any dtype loads into any network.

    Raises:
        OSError: the file could not be written; what was at `path` is still there.
    """
    state = {}
    for key, value in net.state_dict().items():
        own = dtype if value.is_floating_point() else value.dtype
        # A copy: torch.save would write the whole storage of a view.
        state[_unwrapped(key)] = value.detach().to("cpu", own).clone(memory_format=torch.contiguous_format)
    write_atomically(Path(path), lambda temporary: torch.save(state, temporary))


def _unwrapped(key: str) -> str:
    for wrapper in WRAPPERS * 2:  # nested in either order
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
    mend = "load the file of the network these options describe"
    return f"{key} {found} in the file and {asked} in the network; {mend}"


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
