"""Whole training steps: two of the released code, and steps that are not finite.

Agreement over several steps is in tests/test_textbook.py, by way of the plain step.
"""

from __future__ import annotations

import pytest
import torch
from textbook import assert_golden_steps, tiny_model

from models.qs_attn import MODES


def test_two_steps_are_the_released_codes(float64):
    model = tiny_model("--QS_mode", "global")
    assert_golden_steps(model, model)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("mode", MODES)
def test_query_selection_follows_float64(float64, mode, variant):
    if (mode, variant) == ("local", "released"):
        pytest.skip("needs as many patches as channels")
    model = tiny_model("--QS_mode", mode, "--qs_variant", variant)
    model.set_input({domain: torch.rand(1, 3, 32, 48) * 2 - 1 for domain in "AB"})
    model.optimize_parameters()
    assert model.losses["NCE"].dtype == torch.float64


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
