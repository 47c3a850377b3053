"""Whole training steps: the released code's first one, every variant on any batch, and steps that are not finite.

Agreement over several steps is in tests/test_textbook.py, by way of the plain step.
"""

from __future__ import annotations

import pytest
import torch
from golden import load_golden
from textbook import assert_gradients_close, load_before, run_steps, tiny_model


def test_the_first_step_of_the_released_code():
    """Its losses and the gradients of D and F. Those of G carry PyTorch's bug there (see tests/test_normalisation.py)."""
    golden = load_golden("train_step_global")
    model = tiny_model("--QS_mode", "global")
    load_before(model, golden)
    batch = {"A": golden["real_A"], "B": golden["real_B"], "A_paths": ["a"], "B_paths": ["b"]}
    ids = [golden[f"step0.random_ids.{domain}.{layer}"] for layer in range(3) for domain in "AB"]
    losses, grads = next(run_steps(model, model, [batch], [ids]))
    for name, value in losses.items():
        assert value == pytest.approx(golden[f"step0.loss.{name}"].item(), rel=2e-5)
    prefix = "step0.grad."
    expected = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    right = {name: value for name, value in expected.items() if not name.startswith("G.")}
    assert assert_gradients_close(grads, right, 1e-4) > 15
    for name in ("D", "F"):  # D's update is whole; G's and F's second step stand on G's
        for key, value in model.networks[name].state_dict().items():
            grad = expected.get(f"{name}.{key}")
            if grad is not None and key.endswith("weight"):
                before = golden[f"before.{name}.{key}"]
                clear = grad.abs() > 1e-2 * grad.abs().max()  # Adam makes whole steps of rounding elsewhere
                moved = -model.opt.lr * grad.sign()  # what Adam's first step is
                torch.testing.assert_close((value - before)[clear], moved[clear], rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize(
    "argv", ["--QS_mode local", "--QS_mode local_global", "--model cut", "--model fastcut"]
)
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
