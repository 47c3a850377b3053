"""The GPU check: it compares what it says, selects what needs a GPU, and goes on after a failure."""

from __future__ import annotations

import subprocess
import sys
import weakref
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from test_acceleration import batches, tiny_model

from models.textbook import TextbookStep
from scripts import gpu_check

ROOT = Path(__file__).parents[1]


def test_a_step_can_be_captured_beside_the_TextbookStep(monkeypatch):
    """Autograd would accumulate gradients on the stream that a loss still alive was computed on."""
    model, histories = tiny_model(), []

    def noting(model):
        plain = TextbookStep(model)
        step = plain.optimize_parameters

        def noted():
            step()
            histories.extend(map(weakref.ref, plain.losses.values()))

        plain.optimize_parameters = noted
        return plain

    def run(step):
        assert histories and not any(loss() is not None for loss in histories)
        step()

    monkeypatch.setattr(gpu_check, "TextbookStep", noting)
    monkeypatch.setattr(model.accelerator, "run", run)
    losses, gradients = gpu_check.differences(model, batches(2))
    assert len(histories) == 2 * len(model.loss_names) and losses.max() < 1e-4
    assert len(gradients) == 2 and 0 < max(gradients) < 1e-2
    model.opt.cuda_graph = True
    with pytest.raises(SystemExit, match="the step was not captured"):
        gpu_check.differences(model, batches(1))


@pytest.mark.parametrize("loss, gradient", [(1e-6, 0.3), (1e-2, 1e-4), (float("nan"), 1e-4)])
def test_a_step_that_disagrees_is_named(monkeypatch, tmp_path, loss, gradient):
    found = {"": (loss, gradient)}
    monkeypatch.setattr(gpu_check, "AGREEMENT", {words: (1e-4, 1e-2) for words in ("--fast", "")})
    monkeypatch.setattr(
        gpu_check,
        "differences",
        lambda words, _: (torch.tensor([found.get(words, (0, 0))[0]] * 3), [found.get(words, (0, 0))[1]] * 3),
    )
    check = gpu_check.Check(tmp_path, "correctness", cpu=True, limit=60)
    check.side = lambda words: Namespace(model=words)
    with pytest.raises(SystemExit, match="^float32 disagrees$"):
        gpu_check.agreement(check)


def test_a_failure_is_reported_and_the_rest_runs(monkeypatch, tmp_path, capsys):
    def broken(check):
        raise RuntimeError("an illegal memory access")

    def fine(check):
        check.table(["a"], [[1]])

    monkeypatch.setattr(gpu_check, "PARTS", {"speed": (broken, fine)})
    assert gpu_check.main(["--part", "speed", "--cpu", "--out", str(tmp_path)]) == 1
    report = (tmp_path / "speed.md").read_text()
    assert "an illegal memory access" in report and "| 1 |" in report and "Failed: broken." in report
    monkeypatch.setattr(gpu_check, "PARTS", {"speed": (fine,)})
    assert gpu_check.main(["--part", "speed", "--cpu", "--out", str(tmp_path)]) == 0


def test_the_tests_of_a_gpu_are_selected_by_their_marker(tmp_path):
    """Names would select all tests of a checkout in a folder named "cuda"."""
    checkout = tmp_path / "cuda"
    checkout.symlink_to(ROOT, target_is_directory=True)
    words = "-m pytest --collect-only -q -c /dev/null -m gpu tests/test_qs_kernels.py".split()
    done = subprocess.run(
        [sys.executable, *words, "--rootdir", str(checkout), "--confcutdir", str(checkout / "tests")],
        cwd=checkout, capture_output=True, text=True,
    )  # fmt: skip
    names = [line for line in done.stdout.splitlines() if "::" in line]
    assert names and all("test_at_training" in n or "captured_graph" in n or "[cuda" in n for n in names)


@pytest.mark.parametrize("seconds", [1e9, 0])
def test_a_ladder_names_what_it_had_no_time_for(monkeypatch, tmp_path, seconds):
    monkeypatch.setattr(
        gpu_check, "time_variant", lambda *_: ({"median": 2, "low": 1, "high": 3}, 1, 0.5, [])
    )
    check = gpu_check.Check(tmp_path, "speed", cpu=True, limit=seconds)
    if seconds:
        gpu_check.ladder(check)
        assert "| float32 | 2.00 | 1.00 to 3.00 | 1.0 x | 1 | 0.50 | - |" in check.text
    else:
        with pytest.raises(SystemExit, match="float32: no time was left"):
            gpu_check.ladder(check)
