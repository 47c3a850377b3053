"""Files of weights, for generators and for the networks of metrics alike: fetched, read, and filled in.

Nothing in a file is executed, and damage is noticed: torch.load does not check the checksums of its archives.
"""

import hashlib
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from util.errors import UserError
from util.files import verify_archive

# Prefixes that DataParallel, DistributedDataParallel and torch.compile give to a network's keys.
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


def fetch(url: str, path: Path) -> None:
    """Fetch `url` to `path`; the name's checksum is checked. UserError, with what to do by hand."""
    print(f"fetching {url} to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    checked = re.search(r"-([0-9a-f]{8,})\.", path.name)
    try:
        torch.hub.download_url_to_file(url, str(path), checked and checked[1])
    except (OSError, RuntimeError) as error:  # no network; another hash
        raise UserError(f"cannot fetch {url} ({error}): fetch it elsewhere and put it at {path}") from None


def sha256(path: Path) -> str:
    """The checksum of a file, 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_tensors(path: str | Path, part: str | None = None) -> dict[str, Tensor]:
    """The state dict in a file, or its `part`, as "a" of MUNIT's, on the CPU, without prefixes of wrappers.

    UserError where the file is damaged, or holds anything but named arrays of finite numbers.
    """
    path = Path(path)
    with open(path, "rb") as file:
        beginning = file.read(200)
    try:
        state = _load(path, beginning)
    except UserError:
        raise
    except Exception as error:  # torch raises exceptions of many types for damaged files
        raise UserError(f"cannot load {path}: {_what_it_is(beginning, error)}") from None
    if part is not None:
        state = state.get(part) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and _is_plain(value) for key, value in state.items()
    ):
        raise UserError(f"cannot load {path}: it is not the bare state dict of one network; save that alone")
    for key, value in state.items():
        if value.is_floating_point() and not value.float().isfinite().all():
            found = f"{key} holds numbers that are not finite (NaN or infinity)"
            raise UserError(f"cannot load {path}: {found}; load another epoch")
    return {WRAPPERS.sub("", key): value for key, value in state.items()}


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with its numbers: not sparse, quantised or on "meta"."""
    if not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def _load(path: Path, beginning: bytes) -> object:
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise UserError(f"{path} needs a package ({error}): pip install safetensors") from None
        return load_file(path)
    if beginning.startswith(b"PK"):
        verify_archive(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _what_it_is(beginning: bytes, error: Exception) -> str:
    """What a file that cannot be loaded looks like, and what to do."""
    if beginning.lstrip()[:1] == b"<":
        return "it is a web page (HTML); download the file itself, not the page that leads to it"
    if beginning.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run git lfs pull to get the file itself"
    if isinstance(error, pickle.UnpicklingError) and (
        "global" in str(error).lower() or beginning[:1] == b"\x80"  # a bare pickle begins so
    ):
        return "it holds pickled code or objects, which are never executed here; save the bare state dict"
    return f"it is damaged or cut short, or no file of weights (it begins with {beginning[:12]!r})"


@dataclass(frozen=True)
class Published:
    """Weights of a network: in torch's cache, where its own downloads lie, or wherever `option` says."""

    network: str  # in words
    option: str
    url: str
    installed: Path | None = None  # where a package has them

    @property
    def cached(self) -> Path:
        """Where the file lies if it is not named."""
        return self.installed or Path(torch.hub.get_dir(), "checkpoints", self.url.rpartition("/")[2])

    def find(self, given: str | Path | None = None, download: bool | None = None) -> Path:
        """The file: `given`, or torch's copy, fetched first if `download` (None: not offered)."""
        path = Path(given) if given else self.cached
        if not given and download and not path.is_file():
            fetch(self.url, path)
        if not path.is_file():
            found = f"{self.option}: no file {path} with the weights of {self.network}"
            offered = "" if download is None else "--download_weights or "
            hint = f"Fetch {self.url} to there, or give {offered}{self.option} FILE"
            raise UserError(f"{found}. {hint}")
        return path

    def fill(self, network: nn.Module, path: Path, rename: Callable[[str], str] = str) -> dict[str, str]:
        """Load a file strictly, its names as `rename` has them ("": left out); what a receipt says of it."""
        try:
            state = {rename(name): value for name, value in read_tensors(path).items()}
        except UserError as error:
            raise UserError(f"{error}. {self.network} is published at {self.url}") from None
        state.pop("", None)
        try:
            wrong = network.load_state_dict(state, strict=False)
            # Counters of batch norms are ignored: older files lack them, and nothing here reads them.
            fits = all("num_batches_tracked" in key for keys in wrong for key in keys)
        except RuntimeError:  # of another shape
            fits = False
        if not fits:
            raise UserError(f"{path} does not hold the weights of {self.network}. Fetch {self.url}")
        return {"weights": path.name, "sha256": sha256(path)}
