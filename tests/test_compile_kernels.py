"""Kernels compiled for GPUs that are not there: which ones a training launches, and whether they fit."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from models.speed import qs_kernels
from models.speed.triton_support import trials
from scripts.gpu import compile_kernels
from scripts.gpu.compile_kernels import SHARED_MEMORY, TRAININGS, launches, main

BETWEEN_CONVOLUTIONS = {
    "_moments_kernel", "_merge_kernel", "_apply_kernel",
    "_gather_gradient_kernel", "_sum_kernel", "_apply_gradient_kernel",
}  # fmt: skip


@pytest.mark.parametrize(
    "training, ranking",
    [("bf16, global", {"_global_states", "_merge_splits"}), ("float32, local", {"_local_log_entropy"})],
)
def test_the_launches_are_those_of_a_training(training, ranking) -> None:
    known = set(trials.passed), set(trials.failed)
    found = launches(TRAININGS[training], 86)
    names = {launch.kernel.__name__ for launch in found}
    assert names >= BETWEEN_CONVOLUTIONS | {"_spread_kernel", "_collect_kernel"} | ranking
    types = {launch.arguments[0] for launch in found if launch.kernel.__name__ == "_apply_kernel"}
    assert types == {torch.bfloat16 if training.startswith("bf16") else torch.float32}
    assert (trials.passed, trials.failed) == known  # nothing has run


@pytest.mark.parametrize("capability, block", [(86, 64), (90, 256)])
def test_blocks_are_those_of_the_gpu(capability, block) -> None:
    found = launches(TRAININGS["bf16, global"], capability)
    ranking = [launch for launch in found if launch.kernel is qs_kernels._global_states]
    assert {launch.options["BLOCK_K"] for launch in ranking} == {block}


def test_a_kernel_that_is_not_launched_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(qs_kernels, "_global_config", lambda *arguments: {})
    with (
        pytest.warns(RuntimeWarning, match="KeyError: 'BLOCK_Q'"),
        pytest.raises(RuntimeError, match="not launched, since their trials failed: global ranking"),
    ):
        launches(TRAININGS["bf16, global"], 86)


def test_what_does_not_fit_or_compile_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr(compile_kernels, "TRAININGS", {"bf16, global": TRAININGS["bf16, global"]})
    words = ["--targets=86", "--kernels=_global_states,_merge_splits"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "| sm_86 | 99 | bf16, global | 2 | _global_states" in said and "All compile and fit." in said

    monkeypatch.setitem(SHARED_MEMORY, 86, 4)
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "sm_86, bf16, global: _global_states: " in said and "but there are 4096" in said

    config = {"BLOCK_Q": 100, "BLOCK_K": 64, "BLOCK_C": 16, "INPUT_PRECISION": "ieee"}  # no power of 2
    monkeypatch.setattr(qs_kernels, "_global_config", lambda *arguments: config)
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "_global_states: CompilationError" in said and "tl.arange(0, BLOCK_Q)" in said
