"""Which image files a training uses, in a few bytes, so that a resume notices changes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from data.base_dataset import BaseDataset

Fingerprint = dict[
    str, dict[str, object]
]  # domain -> {"images": count, "names": hash of the file names in order}


def fingerprint(dataset: BaseDataset, dataroot: str) -> Fingerprint:
    """The files of each domain: their count, and a hash of their names under `dataroot`."""
    found = {}
    for domain, store in dataset.stores.items():
        names = "\0".join(os.path.relpath(path, dataroot) for path in store.paths)
        digest = hashlib.blake2b(os.fsencode(names), digest_size=16).hexdigest()
        found[domain] = {"images": len(store.paths), "names": digest}
    return found


def changes(before: Mapping[str, Mapping[str, object]], now: Fingerprint) -> list[str]:
    """One line per domain whose files are not those of `before`."""
    lines = []
    for domain in sorted({*before, *now}):
        there, here = before.get(domain, {}), now.get(domain, {})
        if there.get("images", 0) != here.get("images", 0):
            lines.append(
                f"domain {domain}: {there.get('images', 0)} images there, {here.get('images', 0)} now"
            )
        elif there.get("names") != here.get("names"):
            lines.append(f"domain {domain}: {here['images']} images as there, but with other names")
    return lines
