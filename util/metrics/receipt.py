"""The receipt of an evaluation: all that is needed to get the same numbers again, as one JSON file."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PROTOCOL = "qs-attn evaluation 1 (docs/evaluation.md)"
_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pillow", "pytorch-fid")


def make_receipt(options: dict[str, Any], results: dict[str, Any], device: str) -> dict[str, Any]:
    """A receipt around the `results` of an evaluation: its numbers, the sets and networks they come from."""
    return {
        "protocol": PROTOCOL,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **results,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "device": device,
    }


def write_receipt(path: str | Path, receipt: dict[str, Any]) -> None:
    """Write the JSON file, with the folders above it where they are missing. NaN becomes null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_without_nan(receipt), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value
