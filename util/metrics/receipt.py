"""The receipt of an evaluation: all that is needed to reproduce its numbers, as one JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PROTOCOL = "qs-attn evaluation 2 (docs/evaluation.md)"
PACKAGES = ("torch", "torchvision", "triton", "numpy", "scipy", "pillow", "pytorch-fid", "lpips")


def write_receipt(
    path: Path, options: Mapping[str, object], results: Mapping[str, Any], device: torch.device
) -> None:
    """Write the `results` of an evaluation (numbers, image sets, networks) with its options and versions."""
    receipt = {
        "protocol": PROTOCOL,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **results,
        "options": options,
        **versions_and_hardware(device),
    }
    path.write_text(json.dumps(receipt, indent=2, allow_nan=False, default=str) + "\n", encoding="utf-8")


def versions_and_hardware(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, to keep beside every number: {"versions", "device", "hardware"}."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    hardware = {
        "platform": platform.platform(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        hardware |= {"gpu": gpu.name, "gpu_memory_GB": round(gpu.total_memory / 1e9, 1)}
        hardware |= {"multiprocessors": gpu.multi_processor_count, "capability": f"{gpu.major}.{gpu.minor}"}
        hardware |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    return {"versions": versions, "device": str(device), "hardware": hardware}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
