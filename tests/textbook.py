"""What the tests of the plain step share: the bug of PyTorch's instance norm, and runs of steps with their gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from models import create_model, patch_sampler
from options.train_options import TrainOptions


def instance_norm_bug() -> bool:
    """Whether this PyTorch's instance norm, at batch one on the CPU, takes the strides of a gradient for its input's."""
    x = torch.linspace(-1, 1, 8 * 256).square().view(1, 8, 16, 16).requires_grad_()
    cotangent = torch.linspace(-2, 1, 8 * 256).cos().view(1, 8, 16, 16)
    strided = cotangent.to(memory_format=torch.channels_last)
    grads = [torch.autograd.grad(F.instance_norm(x), x, incoming)[0] for incoming in (cotangent, strided)]
    return not torch.allclose(*grads, rtol=1e-3, atol=1e-4)


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


def run_steps(
    step, model, batches: list[dict], locations=None
) -> Iterator[tuple[dict[str, float], dict[str, Tensor]]]:
    """Losses and gradients (as they stand before each update) of each of a few steps.

    Args:
        step: the model itself, or a `TextbookCUT` on it.
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
    """Compare gradients by name, each against its own largest value; returns how many were large enough to compare.

    A gradient a hundred times below its network's largest is left out: so is a bias before an instance norm, whose
    gradient is zero but for rounding.
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
