"""What tests of whole steps share: tiny models, the golden steps, runs of steps with their gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from golden import load_golden, under
from torch import Tensor

from models import create_model, patch_sampler
from options.train_options import TrainOptions


def tiny_model(*argv: str):
    """A model of the options given, with networks of a few channels, on the CPU."""
    torch.manual_seed(0)
    small = "--gpu_ids -1 --ngf 4 --ndf 4 --netF_nc 16 --num_patches 24".split()
    return create_model(TrainOptions().parse([*small, *argv]))


def load_before(model, golden: dict[str, Tensor]) -> None:
    """Give the model's networks the weights that the golden steps began with."""
    for name, net in model.networks.items():
        prefix = f"before.{name}."
        net.load_state_dict(
            {key.removeprefix(prefix): v for key, v in golden.items() if key.startswith(prefix)}
        )


def golden_steps(golden: dict[str, Tensor]) -> tuple[list[dict], list[list[Tensor]]]:
    """The batches and the random positions of the two golden steps, for `run_steps`."""
    batch = {"A": golden["real_A"], "B": golden["real_B"]}
    locations = [
        [golden[f"step{step}.random_ids.{domain}.{layer}"] for layer in range(3) for domain in "AB"]
        for step in range(2)
    ]
    return [batch, batch], locations


def assert_golden_steps(step, model) -> None:
    """Two steps of `step` are the released code's: every loss, every gradient of G, D and F, every weight.

    In float64 (the fixture); the file's gradients and weights are float32.
    """
    golden = {
        key: value.double() if value.is_floating_point() else value
        for key, value in load_golden("train_step_global").items()
    }
    load_before(model, golden)
    for number, (losses, gradients) in enumerate(run_steps(step, model, *golden_steps(golden))):
        for name, value in losses.items():
            assert value == pytest.approx(golden[f"step{number}.loss.{name}"].item(), rel=1e-12)
        expected = under(golden, f"step{number}.grad.")
        assert gradients.keys() == expected.keys()
        assert assert_gradients_close(gradients, expected, 1e-6) >= 40
    for name, net in model.networks.items():
        for key, value in under(golden, f"after.{name}.").items():
            torch.testing.assert_close(net.state_dict()[key], value, rtol=0, atol=1e-7)


def run_steps(
    step, model, batches: list[dict], locations=None
) -> Iterator[tuple[dict[str, float], dict[str, Tensor]]]:
    """Losses and gradients (as they stand before each update) of each of a few steps.

    Args:
        step: the model itself, or a `TextbookStep` on it.
        locations: for each step, the random positions to hand out in their order; None: drawn.
    """
    grads: dict[str, Tensor] = {}
    draw = patch_sampler.random_locations
    hooks = []
    for name, optimizer in step.optimizers.items():

        def keep(*_, name=name) -> None:
            for key, parameter in model.networks[name].named_parameters():
                if parameter.grad is not None:
                    grads[f"{name}.{key}"] = parameter.grad.clone()

        hooks.append(optimizer.register_step_pre_hook(keep))
    try:
        for number, batch in enumerate(batches):
            grads.clear()
            if locations is not None:
                given = iter(locations[number])
                patch_sampler.random_locations = lambda *_, given=given: next(given)
            model.set_input(batch)
            step.optimize_parameters()
            yield step.get_current_losses(), dict(grads)
    finally:
        patch_sampler.random_locations = draw
        for hook in hooks:
            hook.remove()


def assert_gradients_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> int:
    """Compare gradients by name, each against its largest value; return how many were large enough.

    A gradient a hundred times below its network's largest is left out, such as that of a bias before an
    instance norm, which is zero but for rounding.
    """
    scales = {name: value.abs().max().item() for name, value in expected.items()}
    largest = {
        net: max(scale for name, scale in scales.items() if name.startswith(net))
        for net in {n[0] for n in scales}
    }
    compared = [name for name in expected if scales[name] > 1e-2 * largest[name[0]]]
    for name in compared:
        off = (found[name] - expected[name]).abs().max().item() / scales[name]
        assert off < tolerance, f"the gradient of {name} is off by {off:.1e} of its largest value"
    return len(compared)
