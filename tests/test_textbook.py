"""The step that trains against the released code's numbers and the plain step; steps that are not finite."""

import pytest
import torch
from golden import load_golden
from textbook import assert_golden_steps, assert_gradients_close, close, images, run_steps, tiny_model

from models.textbook import TextbookStep, log_of_entropy, vectors

MODES = [
    "--QS_mode global",
    "--QS_mode local",
    "--QS_mode local_global",
    "--model cut",
    "--normG batch --nce_idt false",
    "--normG batch --normD batch",
]


@pytest.mark.parametrize("plain", [True, False])
def test_the_plain_step_and_the_one_that_trains_are_the_released_one(float64, plain):
    """Two steps of the released code: every loss, every gradient, every weight."""
    model = tiny_model("--QS_mode", "global")
    assert_golden_steps(TextbookStep(model) if plain else model, model)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("argv", MODES)
def test_the_step_that_trains_is_the_plain_one(float64, argv, batch):
    """The same losses and gradients with the same positions, at each of three steps of a training.

    In float64: in float32 the order of a sum can decide which of two near-equal entropies is less.
    Each plain step begins with the training's weights, because two trainings diverge by themselves: Adam's
    first steps have the size of the rate even where a gradient is only rounding.
    """
    model, plain_model = tiny_model(*argv.split()), tiny_model(*argv.split())
    plain = TextbookStep(plain_model)
    for number in range(3):
        for name, net in model.networks.items():
            plain_model.networks[name].load_state_dict(net.state_dict())
        found = []
        for step, its_model in ((model, model), (plain, plain_model)):
            torch.manual_seed(number)
            found += run_steps(step, its_model, [images(batch, (32, 48), number)])
        (losses, grads), (plain_losses, plain_grads) = found
        assert losses == pytest.approx(plain_losses, rel=1e-10)
        assert assert_gradients_close(grads, plain_grads, 1e-8) > 30


def test_plain_log_entropy_is_that_of_long_doubles():
    golden = load_golden("entropy_saturated")
    f = vectors(golden["features"].float())
    log_h = log_of_entropy(f @ f.mT)
    assert torch.equal(log_h.sort(stable=True).indices, golden["order"])
    close(log_h.double(), golden["entropy"].log(), rtol=1e-4, atol=1e-4)
    tame = 0.1 * f @ f.mT
    tame[0, 0] = tame[0, 0, 0]  # all keys tied
    plain = torch.special.entr(tame.softmax(-1)).sum(-1)
    close(log_of_entropy(tame).exp(), plain, rtol=1e-4, atol=1e-5)


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
