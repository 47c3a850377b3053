"""The GPU check: it compares what it says, and goes on after a failure."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from test_acceleration import tiny_model

from scripts import gpu_check


def test_the_step_agrees_with_the_textbook_step():
    model = tiny_model()
    losses, gradients = gpu_check.differences(model, 2)
    assert losses.max() < 1e-4 and len(gradients) == 2 and 0 < max(gradients) < 1e-2
    model.opt.cuda_graph = True
    with pytest.raises(SystemExit, match="the step was not captured"):
        gpu_check.differences(model, 1)


@pytest.mark.parametrize("loss, gradient", [(1e-6, 0.3), (1e-2, 1e-4), (float("nan"), 1e-4)])
def test_a_step_that_disagrees_is_named_and_the_rest_runs(monkeypatch, tmp_path, loss, gradient):
    def found(words, steps):
        return (torch.tensor([loss] * 3), [gradient] * 3) if words == "" else (torch.zeros(3), [0.0])

    monkeypatch.setattr(gpu_check, "AGREEMENT", {words: (1e-4, 1e-2) for words in ("--fast", "")})
    monkeypatch.setattr(gpu_check, "differences", found)
    monkeypatch.setattr(gpu_check.Check, "side", lambda check, words: Namespace(model=words))
    monkeypatch.setattr(gpu_check, "PARTS", {"speed": (gpu_check.agreement, gpu_check.agreement)})
    assert gpu_check.main(["--part", "speed", "--cpu", "--out", str(tmp_path)]) == 1
    report = (tmp_path / "speed.md").read_text()
    assert "float32 disagrees" in report and "--fast disagrees" not in report
    assert "torch" in report and "Failed: agreement, agreement." in report
