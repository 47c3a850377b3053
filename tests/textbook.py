"""What tests of whole steps share: tiny models, golden steps, runs of steps with their gradients."""

from collections.abc import Iterable, Iterator

import pytest
import torch
from golden import load_golden, under
from torch import Tensor

from models import create_model, patch_sampler
from options.train_options import TrainOptions
from util.errors import UserError


def model_of(*lines: str):
    """The model of the options given, in words or whole lines of words."""
    torch.manual_seed(0)
    return create_model(TrainOptions().parse(" ".join(lines).split()))


def tiny_model(*argv: str):
    """A model with networks of a few channels, on the CPU."""
    return model_of("--gpu_ids -1 --ngf 4 --ndf 4 --netF_nc 16 --num_patches 24", *argv)


def images(count: int = 1, size: tuple[int, int] = (32, 32), seed: int = 0) -> dict[str, Tensor]:
    """A batch of noise."""
    generator = torch.Generator().manual_seed(seed)
    return {domain: torch.rand(count, 3, *size, generator=generator) * 2 - 1 for domain in "AB"}


def step(model, batch: dict) -> dict[str, float]:
    """One training step; its losses."""
    model.set_input(batch)
    model.optimize_parameters()
    return model.get_current_losses()


def assert_refused(words: str, told: str) -> None:
    """The options are refused with a message like that."""
    options = TrainOptions()
    with pytest.raises(UserError, match=told):
        options.resolve(options.parser.parse_given(words.split()))


def close(found: Tensor, expected: Tensor, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=rtol, atol=atol)


def load_before(model, golden: dict[str, Tensor]) -> None:
    """The weights that the golden steps began with; a file may lack constants and unused counts."""
    for name, net in model.networks.items():
        missing, unexpected = net.load_state_dict(under(golden, f"before.{name}."), strict=False)
        assert not unexpected and all(key.endswith(("num_batches_tracked", ".filt")) for key in missing)


def released_steps(
    model, golden: dict, batches: Iterable[dict], pictures: Iterable[str] = (), locations=None
) -> Iterator[int]:
    """Run golden steps from their weights; every loss, the first gradients and the pictures are the released.

    Yields the number of each step, from 1, behind it.
    """
    load_before(model, golden)
    for number, (losses, gradients) in enumerate(run_steps(model, model, batches, locations), 1):
        for name, value in losses.items():
            assert value == pytest.approx(golden[f"step{number}.loss_{name}"].item(), rel=1e-5), name
        for key, expected in under(golden, "grad1.").items() if number == 1 else ():
            close(gradients[key], expected, atol=1e-6 * expected.abs().max().item() + 1e-9)
        for name in pictures:
            close(model.results[name], golden[f"step{number}.{name}"])
        yield number


def assert_golden_steps(step, model) -> None:
    """Two steps of `step` are the released code's: every loss, every gradient of G, D and F, every weight.

    In float64 (the fixture); the file's gradients and weights are float32.
    """
    golden = {
        key: value.double() if value.is_floating_point() else value
        for key, value in load_golden("train_step_global").items()
    }
    load_before(model, golden)
    batch = {"A": golden["real_A"], "B": golden["real_B"]}
    locations = [
        [golden[f"step{number}.random_ids.{domain}.{layer}"] for layer in range(3) for domain in "AB"]
        for number in range(2)
    ]
    for number, (losses, gradients) in enumerate(run_steps(step, model, [batch, batch], locations)):
        for name, value in losses.items():
            assert value == pytest.approx(golden[f"step{number}.loss.{name}"].item(), rel=1e-12)
        expected = under(golden, f"step{number}.grad.")
        assert gradients.keys() == expected.keys()
        assert assert_gradients_close(gradients, expected, 1e-6) >= 40
    for name, net in model.networks.items():
        for key, value in under(golden, f"after.{name}.").items():
            close(net.state_dict()[key], value, rtol=0, atol=1e-7)


def run_steps(
    step, model, batches: Iterable[dict], locations=None
) -> Iterator[tuple[dict[str, float], dict[str, Tensor]]]:
    """Losses and gradients (as they stand before each update) of each of a few steps.

    `step` is the model itself, or a `TextbookStep` on it. `locations`, if given, are the random positions to
    hand out in each step in their order.
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
    nets = {name[0] for name in scales}
    largest = {net: max(scale for name, scale in scales.items() if name[0] == net) for net in nets}
    compared = [name for name in expected if scales[name] > 1e-2 * largest[name[0]]]
    for name in compared:
        off = (found[name] - expected[name]).abs().max().item() / scales[name]
        assert off < tolerance, f"the gradient of {name} is off by {off:.1e} of its largest value"
    return len(compared)
