"""Files that others publish, fetched once."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from util.errors import UserError


def fetch(url: str, path: Path) -> None:
    """Fetch `url` to `path`, with a progress bar.

    A name such as NAME-01234567.pth has the beginning of the file's sha256, which is checked. Raises
    `UserError`, with what to do by hand, where the file cannot be fetched.
    """
    print(f"fetching {url} to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    checked = re.search(r"-([0-9a-f]{8,})\.", path.name)
    try:
        torch.hub.download_url_to_file(url, str(path), checked and checked[1])
    except (OSError, RuntimeError) as error:  # no network; another hash
        raise UserError(f"cannot fetch {url} ({error}): fetch it elsewhere and put it at {path}") from None
