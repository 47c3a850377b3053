"""Settings for all tests: one thread for torch, since tensors are tiny, and the project's root on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
