"""The benchmark on networks of a few channels: every number, for both sides."""

from __future__ import annotations

import json

import pytest
import torch

from models.qs_attn import MODES, Rule, global_attention
from scripts import benchmark
from scripts.measuring import Side

TINY = "--device cpu --size 32 --ngf 4 --ndf 4".split()


def test_all_numbers_of_a_mode(tmp_path, capsys):
    words = "--modes local_global --steps 2 --warmup 0 --images 1 --inference_batch 2 --netF_nc 8".split()
    words += ["--precision", "bf16", "--num_patches", "8"]
    assert benchmark.main([*TINY, *words, "--json", str(tmp_path / "numbers.json")]) == 0
    written = json.loads((tmp_path / "numbers.json").read_text())
    (result,) = written["results"]
    assert result["speed"]["precision"] == "bf16" and written["machine"]["versions"]["torch"]
    for side in ("plain", "fast"):
        step = result["steps"][side]
        assert 0 < step["low"] <= step["median"] <= step["high"]
        assert result["images"][side]["median"] > 0
        assert 10e6 < result["memory"][side] < 8e9  # PyTorch alone is more than 10 MB
    table = capsys.readouterr().out
    assert "| local_global |" in table and "precision bf16" in table


@pytest.mark.parametrize("mode", ["munit", "lsesim", "norm", "qs_multi", "stargan"])
def test_models_systems_and_rules_of_ones_own(mode, tmp_path, monkeypatch):
    """What has no textbook step is timed alone; a new rule is ranked in the textbook step by itself."""
    rule = Rule(lambda features, window: -features.flatten(2).norm(dim=1), global_attention)
    monkeypatch.setitem(MODES, "norm", rule)
    small = {
        "munit": "--mlp_dim 8 --n_res 1 --n_layer 2 --num_scales 2",
        "norm": "--netF_nc 8",
        "qs_multi": "--netF_nc 8 --num_patches 8",
        "stargan": "--d_repeat_num 3 --g_repeat_num 1 --batch_size 2",
    }.get(mode, "")
    words = f"--modes {mode} --steps 1 --warmup 0 --images 1 --no_memory {small}".split()
    assert benchmark.main([*TINY, *words, "--json", str(tmp_path / "numbers.json")]) == 0
    (result,) = json.loads((tmp_path / "numbers.json").read_text())["results"]
    assert result["steps"]["fast"]["median"] > 0 and result["images"]["fast"]["median"] > 0
    assert ("plain" in result["steps"]) == (mode == "norm")


def test_the_plain_side_takes_none_of_the_speed_options():
    own, rest = benchmark.parse([*TINY, "--precision", "bf16", "--channels_last"])
    plain, fast = (Side(name, benchmark.options_of(own, rest, "cut")) for name in ("plain", "fast"))
    assert (plain.model.opt.precision, plain.model.opt.channels_last) == ("fp32", False)
    assert (fast.model.opt.precision, fast.model.opt.channels_last) == ("bf16", True)
    for ours, theirs in zip(plain.model.netG.parameters(), fast.model.netG.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours is not theirs


def test_wrong_calls_are_named(capsys):
    for words in (["--modes", "lo"], ["--model", "cut"]):
        assert benchmark.main([*TINY, *words]) == 2
    error = capsys.readouterr().err
    assert "'lo'" in error and "local_global" in error and "--modes, not by --model" in error
