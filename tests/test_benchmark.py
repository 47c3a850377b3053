"""The benchmark on networks of a few channels: every number, for both sides, and its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.qs_attn import MODES, Rule, global_attention
from scripts import benchmark
from scripts.measuring import Side, back_to_back, markdown_table, peak_memory, spread

ROOT = Path(__file__).parents[1]
TINY = "--device cpu --size 32 --ngf 4 --ndf 4 --netF_nc 8 --num_patches 8".split()


def test_all_numbers_of_a_mode(tmp_path, capsys):
    words = "--modes local_global --steps 2 --warmup 0 --images 1 --inference_batch 2".split()
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
    table = capsys.readouterr().out
    assert "| local_global |" in table and "precision bf16" in table


@pytest.mark.parametrize("mode", ["munit", "lsesim", "norm"])
def test_models_systems_and_rules_of_ones_own(mode, tmp_path, capsys, monkeypatch):
    """What has no textbook step is timed alone; a new rule is ranked in the textbook step by itself."""
    rule = Rule(lambda features, window: -features.flatten(2).norm(dim=1), global_attention)
    monkeypatch.setitem(MODES, "norm", rule)
    small = {"munit": "--mlp_dim 8 --n_res 1 --n_layer 2 --num_scales 2", "norm": "--netF_nc 8"}.get(mode, "")
    words = f"--device cpu --size 32 --ngf 4 --ndf 4 --modes {mode} --steps 1 --warmup 0 --images 1"
    argv = [*words.split(), *small.split(), "--no_memory", "--json", str(tmp_path / "numbers.json")]
    assert benchmark.main(argv) == 0
    (result,) = json.loads((tmp_path / "numbers.json").read_text())["results"]
    assert result["steps"]["fast"]["step_ms"]["median"] > 0 and result["images"]["fast"]["median"] > 0
    assert ("plain" in result["steps"]) == (mode == "norm")
    assert f"| {mode} |" in capsys.readouterr().out


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
    plain, fast = (Side(name, benchmark.options_of(own, rest, "cut")) for name in ("plain", "fast"))
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


def test_timing_imports_where_python_has_no_resource_module():
    """As on Windows, where the demo imports it too."""
    code = "import sys; sys.modules['resource'] = None; import scripts.measuring, scripts.demo"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
