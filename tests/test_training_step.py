"""Whole training steps against the released code's: losses, gradients and updated weights of two steps on one pair."""

from __future__ import annotations

import pytest
import torch
from golden import load_golden

from models import create_model, patch_sampler
from options.train_options import TrainOptions


def tiny_model(*argv):
    torch.manual_seed(0)
    small = "--gpu_ids -1 --ngf 4 --ndf 4 --netF_nc 16 --num_patches 24".split()
    return create_model(TrainOptions().parse([*small, *argv]))


def test_two_steps_of_the_released_code(monkeypatch):
    golden = load_golden("train_step_global")
    model = tiny_model("--QS_mode", "global")
    for name, net in model.networks.items():
        prefix = f"before.{name}."
        net.load_state_dict({key.removeprefix(prefix): v for key, v in golden.items() if key.startswith(prefix)})
    grads = {}
    for name, optimizer in model.optimizers.items():  # the gradients as they stand before each update
        net = model.networks[name]
        optimizer.register_step_pre_hook(
            lambda *_, name=name, net=net: grads.update(
                {f"{name}.{key}": p.grad.clone() for key, p in net.named_parameters() if p.grad is not None}
            )
        )
    for step in range(2):
        ids = iter([golden[f"step{step}.random_ids.{domain}.{layer}"] for layer in range(3) for domain in "AB"])
        monkeypatch.setattr(patch_sampler, "random_locations", lambda *_, ids=ids: next(ids))
        model.set_input({"A": golden["real_A"], "B": golden["real_B"], "A_paths": ["a"], "B_paths": ["b"]})
        model.optimize_parameters()
        for name, value in model.get_current_losses().items():
            assert value == pytest.approx(golden[f"step{step}.loss.{name}"].item(), rel=2e-4)
        compared = 0
        for key, value in golden.items():
            if key.startswith(f"step{step}.grad."):
                name = key.removeprefix(f"step{step}.grad.")
                scale = value.abs().max()
                if scale > 1e-5:  # else rounding is all there is, as for a bias before an instance norm
                    torch.testing.assert_close(grads[name], value, rtol=5e-3, atol=5e-3 * scale.item(), msg=key)
                    compared += 1
        assert compared > 40
    for name, net in model.networks.items():
        for key, value in net.state_dict().items():
            before, after = golden[f"before.{name}.{key}"], golden[f"after.{name}.{key}"]
            grad = golden.get(f"step1.grad.{name}.{key}")
            if grad is not None and key.endswith("weight"):
                clear = grad.abs() > 1e-2 * grad.abs().max()  # Adam makes whole steps of rounding elsewhere
                torch.testing.assert_close((value - before)[clear], (after - before)[clear], rtol=0.05, atol=2e-5)


@pytest.mark.parametrize("argv", ["--QS_mode local", "--QS_mode local_global", "--model cut", "--model fastcut"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_variant_learns_on_any_batch(argv, batch):
    model = tiny_model(*argv.split())
    before = {name: [p.clone() for p in net.parameters()] for name, net in model.networks.items()}
    model.set_input({"A": torch.rand(batch, 3, 32, 48) * 2 - 1, "B": torch.rand(batch, 3, 32, 48) * 2 - 1})
    model.optimize_parameters()
    assert all(value == value and value != 0 for value in model.get_current_losses().values())
    for name, net in model.networks.items():
        assert any(not torch.equal(p, q) for p, q in zip(net.parameters(), before[name], strict=True)), name


@pytest.mark.parametrize("poisoned", ["A", "B"])
def test_a_step_that_is_not_finite_changes_no_weight_of_its_network(poisoned):
    model = tiny_model()
    batch = {"A": torch.zeros(1, 3, 32, 32), "B": torch.zeros(1, 3, 32, 32)}
    model.set_input(batch)
    model.optimize_parameters()
    before = {name: [p.clone() for p in net.parameters()] for name, net in model.networks.items()}
    batch[poisoned] = torch.full((1, 3, 32, 32), torch.nan)
    for _ in range(2):
        model.set_input(batch)
        model.optimize_parameters()
    failure = model.guard.failure()
    assert failure.step == 1 and f"D_{'fake' if poisoned == 'A' else 'real'}" in failure.names
    for name, net in model.networks.items():
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before[name], strict=True)), name
