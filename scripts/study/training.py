"""Train, and add the peak memory to a file: python scripts/study/training.py FILE [options of train.py]"""

from __future__ import annotations

import sys
from pathlib import Path

# In place of this folder, whose statistics.py would be taken for Python's own.
sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

import train
from scripts.measuring import peak_memory


def main(argv: list[str]) -> int:
    """Train; however it ends, append bytes to the file: of tensors on CUDA, else of this process."""
    file, *words = argv
    try:
        return train.main(words)
    finally:
        peak = peak_memory(torch.device("cuda" if torch.cuda.is_initialized() else "cpu"))
        with open(file, "a", encoding="ascii") as lines:
            lines.write(f"{peak}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
