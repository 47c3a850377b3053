"""The benchmark on networks of a few channels: every number, for both sides, and its refusals."""

from __future__ import annotations

import json
import time

import pytest
import torch

from models import MODELS
from scripts import benchmark
from scripts.measuring import StageClock, back_to_back, markdown_table, peak_memory, seconds, spread

# Options that make the step of a model small, or possible here.
MORE = {
    "asgit_supervised": "--size 128 --load_size 128".split(),
    "munit": "--mlp_dim 8 --n_res 1 --n_layer 2 --num_scales 2".split(),
}
TINY = "--device cpu --size 32 --ngf 4 --ndf 4 --netF_nc 8 --num_patches 8".split()


def test_all_numbers_of_a_mode(tmp_path, capsys):
    words = "--modes local_global --steps 2 --warmup 0 --images 1 --inference_batch 2 --stages".split()
    words += ["--precision", "bf16"]
    assert benchmark.main([*TINY, *words, "--json", str(tmp_path / "numbers.json")]) == 0
    written = json.loads((tmp_path / "numbers.json").read_text())
    (result,) = written["results"]
    assert (
        result["speed"]["precision"] == "bf16"
        and written["machine"]["versions"]["torch"] in torch.__version__
    )
    for side in ("plain", "fast"):
        step = result["steps"][side]["step_ms"]
        assert 0 < step["low"] <= step["median"] <= step["high"]
        assert result["images"][side]["median"] > 0
        assert 10e6 < result["memory"][side] < 8e9  # PyTorch alone is more than 10 MB
        busy = {"G.forward", "G.encode", "D.forward", "F.forward", "patchnce.forward", "select"}
        assert busy | {"data", "backward", "optimiser", "other"} <= set(result["stages"][side])
        assert all(ms > 0 for ms in result["stages"][side].values())
    table = capsys.readouterr().out
    assert "| local_global |" in table and "precision bf16" in table and "Stages of a step" in table


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"qs", "cut", "fastcut"}))
def test_every_model_without_a_textbook_step(model, tmp_path, capsys):
    """Its options are train.py's; its stages come from its networks."""
    words = f"--device cpu --size 32 --ngf 4 --ndf 4 --model {model} --steps 1 --warmup 0 --images 1 --stages"
    argv = [*words.split(), "--no_memory", "--json", str(tmp_path / "numbers.json")]
    assert benchmark.main(argv + MORE.get(model, [])) == 0
    (result,) = json.loads((tmp_path / "numbers.json").read_text())["results"]
    assert result["mode"] == model
    assert result["steps"]["fast"]["step_ms"]["median"] > 0 and result["images"]["fast"]["median"] > 0
    # sesim's fixed maps are no stage
    for name in set(MODELS[model].network_names) - {"F"}:
        assert any(stage.startswith(f"{name}.") for stage in result["stages"]["fast"])
    assert f"| {model} |" in capsys.readouterr().out


def test_modes_follow_from_the_options_of_train_py():
    def modes(*words: str) -> list[str]:
        return benchmark.parse([*TINY, *words])[0].modes

    assert modes() == ["global", "local", "local_global", "cut"]
    assert modes("--model", "qs") == ["global", "local", "local_global"]
    assert modes("--model", "cycle_gan") == ["cycle_gan"]
    assert modes("--QS_mode", "local") == ["local"]
    assert modes("--modes", "cut,global") == ["cut", "global"]


def test_the_plain_side_takes_none_of_the_speed_options():
    own, rest = benchmark.parse([*TINY, "--precision", "bf16", "--channels_last"])
    plain, fast = (benchmark.Side(name, benchmark.options_of(own, rest, "cut")) for name in ("plain", "fast"))
    assert (plain.model.opt.precision, plain.model.opt.channels_last) == ("fp32", False)
    assert (fast.model.opt.precision, fast.model.opt.channels_last) == ("bf16", True)
    for ours, theirs in zip(plain.model.netG.parameters(), fast.model.netG.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours is not theirs


def test_wrong_calls_are_named(capsys):
    assert benchmark.main([*TINY, "--modes", "lo"]) == 2
    assert benchmark.main([*TINY, "--modes", "cut", "--model", "qs"]) == 2
    assert "--modes and --model both say" in capsys.readouterr().err
    assert benchmark.main([*TINY, "--modes", "lo"]) == 2
    with pytest.raises(SystemExit) as stop:
        benchmark.main([*TINY, "--steps", "0"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "'lo'" in error and "local_global" in error and "--steps: takes a whole number" in error


def test_a_stage_within_a_stage_counts_once():
    clock = StageClock(torch.device("cpu"))
    inner = clock.timed("inner", lambda: time.sleep(0.05))
    outer = clock.timed("outer", lambda: (time.sleep(0.02), inner()))
    took = seconds(outer, torch.device("cpu"))
    assert clock.totals["inner"] >= 0.05 and clock.totals["outer"] >= 0.02
    assert clock.totals["inner"] + clock.totals["outer"] <= took + 1e-3


def test_calls_back_to_back_are_timed_after_the_warm_up():
    called = []
    times = back_to_back(called.append, 2, 3, torch.device("cpu"))
    assert called == [0, 1, 0, 1, 2] and len(times) == 3 and min(times) >= 0


def test_markdown_table():
    assert markdown_table(["a", "b"], [[1, "x"], [2, "y"]]) == "| a | b |\n|---|---|\n| 1 | x |\n| 2 | y |"


def test_spread_and_memory():
    assert spread([0.002, 0.001, 0.003]) == pytest.approx({"median": 2, "low": 1, "high": 3})
    before = peak_memory(torch.device("cpu"))
    torch.ones(30_000_000)  # 120 MB
    assert peak_memory(torch.device("cpu")) >= before
