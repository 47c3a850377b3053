"""The benchmark and the GPU check on networks of a few channels: sides, models, rules of one's own."""

from argparse import Namespace

import pytest
import torch
from test_acceleration import tiny_model

from models.qs_attn import MODES, Rule, global_attention
from scripts import benchmark, gpu_check

TINY = "--gpu_ids -1 --size 32 --steps 2 --warmup 0 --ngf 4 --ndf 4".split()


def test_the_plain_side_takes_none_of_the_speed_options():
    own, rest = benchmark.parse([*TINY, "--precision", "bf16", "--channels_last"])
    plain, fast = benchmark.sides_of(own, rest, "cut")
    assert (plain.model.opt.precision, plain.model.opt.channels_last) == ("fp32", False)
    assert (fast.model.opt.precision, fast.model.opt.channels_last) == ("bf16", True)
    for ours, theirs in zip(plain.model.netG.parameters(), fast.model.netG.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours is not theirs


def test_models_systems_and_rules_of_ones_own(monkeypatch, capsys):
    """What has no textbook step is timed alone; a new rule is ranked in the textbook step by itself."""
    rule = Rule(lambda features, window: -features.flatten(2).norm(dim=1), global_attention)
    monkeypatch.setitem(MODES, "norm", rule)
    cases = {
        "norm": "--netF_nc 8 --num_patches 8 --precision bf16",
        "munit": "--mlp_dim 8 --n_res 1 --n_layer 2 --num_scales 2",
        "lsesim": "",
        "qs_multi": "--netF_nc 8 --num_patches 8",
        "stargan": "--d_repeat_num 3 --g_repeat_num 1 --batch_size 2",
    }
    for mode, words in cases.items():
        assert benchmark.main([*TINY, "--modes", mode, *words.split()]) == 0
        said = capsys.readouterr().out
        assert "torch" in said and ("precision bf16" in said) == (mode == "norm")
        _, name, plain, fast, ratio, _, _ = map(str.strip, said.splitlines()[-1].split("|"))
        assert name == mode and float(fast.split()[0]) > 0
        assert (plain == ratio == "-") if mode != "norm" else float(ratio) > 0


# ---- gpu_check.py ----


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
