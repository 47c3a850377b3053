"""The reader of weights files, for generators and for the networks of metrics alike.

Nothing in a file is executed, and damage is noticed: torch.load does not check the checksums of its archives.
"""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import torch
from torch import Tensor

from util.errors import UserError
from util.files import verify_archive

# Prefixes that DataParallel, DistributedDataParallel and torch.compile give to a network's keys.
WRAPPERS = ("module.", "_orig_mod.")


def read_tensors(path: str | Path, part: str | None = None) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU, with plain keys (see `unwrapped`).

    Args:
        part: the name of one of several state dicts in the file. MUNIT's released code saves its generators
            as "a" and "b" of one file.

    Raises:
        UserError: the file is missing or damaged, or holds anything but named arrays of finite numbers.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            beginning = file.read(200)
        if beginning.startswith(b"PK"):
            verify_archive(path)
        if path.suffix == ".safetensors":
            state = _read_safetensors(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror}; check the path") from None
    except UserError:
        raise
    except Exception as error:  # torch raises exceptions of many types for damaged files
        raise UserError(f"cannot load {path}: {_what_it_is(path, beginning, error)}") from None
    if part is not None:
        if not isinstance(state, dict) or part not in state:
            raise UserError(f"cannot load {path}: it holds no network {part}, as MUNIT's .pt files do")
        state = state[part]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        found = f"a dict of {', '.join(map(str, state))}" if isinstance(state, dict) else repr(type(state))
        raise UserError(
            f"cannot load {path}: it holds {found[:100]}, not the bare state dict of one network; "
            "save that one alone"
        )
    for key, value in state.items():
        if obstacle := _obstacle(value):
            raise UserError(
                f"cannot load {path}: {key} {obstacle}; load the weights of another epoch, or save them anew"
            )
    return unwrapped(state)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path} needs a package ({error}): pip install safetensors") from None
    return load_file(path)


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the prefixes of wrappers, which may be nested in either order."""
    plain = {}
    for key, value in state.items():
        for wrapper in WRAPPERS * 2:
            key = key.removeprefix(wrapper)
        plain[key] = value
    return plain


def _obstacle(value: Tensor) -> str | None:
    """Why a tensor is no plain array of finite numbers; None if it is one."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
        return "is a sparse, quantised, complex or empty tensor, not a dense one"
    if value.is_floating_point() and not value.float().isfinite().all():
        return "holds numbers that are not finite (NaN or infinity)"
    return None


def _what_it_is(path: Path, beginning: bytes, error: Exception) -> str:
    """What a file that cannot be loaded looks like, and what to do."""
    if not beginning:
        return "it is empty; download or copy it again"
    if beginning.lstrip()[:1] == b"<":
        return "it is a web page (HTML); download the file itself, not the page that leads to it"
    if beginning.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run git lfs pull to get the file itself"
    if beginning.startswith(b"PK") and isinstance(error, OSError):
        return "it is cut short or damaged; download or copy it again"
    if tarfile.is_tarfile(path):
        return (
            "it is an archive of torch before 0.2, which cannot be read without executing what it holds; "
            "if you trust it, load it with an old torch and save it again"
        )
    if isinstance(error, pickle.UnpicklingError) and (
        "global" in str(error).lower() or beginning[:1] == b"\x80"  # a bare pickle begins so
    ):
        return (
            "it holds pickled code or objects, which are never executed here; save the bare state dict "
            "(tensors only) and load that"
        )
    return f"it is damaged, or no file of torch.save (it begins with {beginning[:12]!r}); copy it again"
