"""Changes to the training step that no GPU has measured yet: `--experimental` switches them on by name.

None changes the mathematics. docs/performance.md has the prediction for each, and the command that measures
it. One that pays becomes the step; one that does not is removed.
"""

from __future__ import annotations

import argparse

EXPERIMENTS = {
    "split_backward": "PatchNCE is differentiated without waiting for D",
    "shared_casts": "under --precision bf16, all weights are cast at once, and all their gradients back",
    "weight_gradient_stream": "shared_casts, and a stream for gradients of convolutions' weights",
    "batched_heads": "the heads of all tapped layers run as batched products",
    "dependent_launch": "the kernels of this project are launched before the kernel ahead of them has ended",
    "graph_pieces": "several processes may capture the step, cut where they exchange gradients",
}


def experiment_list(text: str) -> list[str]:
    """Comma-separated names of EXPERIMENTS, or all of them for "all"; "none" for none."""
    if text == "all":
        return list(EXPERIMENTS)
    names = [part.strip() for part in text.split(",") if part.strip() not in ("", "none")]
    if not EXPERIMENTS.keys() >= set(names):
        raise argparse.ArgumentTypeError(f"takes {', '.join(EXPERIMENTS)}, all or none, not {text!r}")
    return names
