"""Continuing Adam from a saved state: what it holds is checked before any of it is used."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")


def check_moments(optimizer: Optimizer, saved: dict) -> None:
    """ValueError unless `saved` has step counts and moments for the optimiser's parameters, in their shapes.

    Fused Adam does not check them: a moment of another shape makes it write outside its memory.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, state in saved["state"].items():
        if place not in range(len(parameters)) or state.keys() != {"step", *MOMENTS}:
            raise ValueError(f"its optimiser has {sorted(state)} for parameter {place} of {len(parameters)}")
        wanted = {"step": torch.Size([]), **dict.fromkeys(MOMENTS, parameters[place].shape)}
        for name, shape in wanted.items():
            tensor = state[name]
            if not isinstance(tensor, Tensor) or tensor.shape != shape or not tensor.is_floating_point():
                raise ValueError(
                    f"its optimiser has no numbers {tuple(shape)} as {name} of parameter {place}"
                )


def load_moments(optimizer: Optimizer, saved: dict) -> None:
    """Continue with the moments of `saved`, in the memory layout of the parameters, and with own settings."""
    own_settings = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": own_settings})
    for parameter, state in optimizer.state.items():
        for name in MOMENTS:
            state[name] = torch.empty_like(parameter).copy_(state[name])
