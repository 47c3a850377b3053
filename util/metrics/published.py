"""Weights files that others publish: where they lie, how they are fetched, and how they fill a network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from util.errors import UserError
from util.weight_files import fetch, read_tensors


@dataclass(frozen=True)
class Published:
    """The weights of a network: in torch's cache, where its own downloads lie, or wherever `option` says."""

    network: str  # in words
    option: str
    url: str
    installed: Path | None = None  # where a package has them

    @property
    def cached(self) -> Path:
        """Where the file lies if it is not named."""
        return self.installed or Path(torch.hub.get_dir(), "checkpoints", self.url.rpartition("/")[2])

    def is_there(self, given: str | Path | None = None) -> bool:
        """Whether a file is `given`, or lies where it lies if none is."""
        return bool(given) or self.cached.is_file()

    def find(self, given: str | Path | None = None, download: bool = False) -> Path:
        """The file: `given`, or torch's copy, which is fetched first if it is missing and `download` says so.

        Raises `UserError` with the address where there is no file, or where it cannot be fetched.
        """
        path = Path(given) if given else self.cached
        if not given and download and not path.is_file():
            fetch(self.url, path)
        if not path.is_file():
            raise UserError(
                f"{self.option}: no file {path} with the weights of {self.network}. Fetch {self.url} "
                f"to there, or give --download_weights, or name a file with {self.option} FILE"
            )
        return path

    def read(self, path: Path) -> dict[str, Tensor]:
        """The state dict in a file; `UserError` with the address where it is damaged or holds none."""
        try:
            return read_tensors(path)
        except UserError as error:
            raise UserError(f"{error}. {self.network} is published at {self.url}") from None

    def fill(self, network: nn.Module, path: Path, state: dict[str, Tensor] | None = None) -> dict[str, str]:
        """Load the file at `path`, or `state` made from it, strictly; returns what a receipt says of it."""
        try:
            wrong = network.load_state_dict(self.read(path) if state is None else state, strict=False)
            # Counters of batch norms are ignored: older files lack them, and nothing here reads them.
            fits = all("num_batches_tracked" in key for keys in wrong for key in keys)
        except RuntimeError:  # of another shape
            fits = False
        if not fits:
            raise UserError(f"{path} does not hold the weights of {self.network}. Fetch {self.url}")
        return {"weights": path.name, "sha256": sha256(path)}


def sha256(path: str | Path) -> str:
    """The checksum of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
