"""The exercises of CONTRIBUTING.md, done to the letter: a selection rule and a loss term of one's own."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from textbook import images, step, tiny_model
from trained_run import make_run

import models
from models import qs_attn
from models.layers import full
from models.qs_model import QSModel
from models.speed import qs_kernels
from scripts import visualize_queries

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
RULE, LOSS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def rule():
    """The mode "norm", as CONTRIBUTING.md adds it to models/qs_attn.py."""
    before = dict(qs_attn.MODES)
    exec(RULE, vars(qs_attn))
    yield "norm"
    qs_attn.MODES.pop("norm")
    assert before == qs_attn.MODES


def stepped(words: str):
    model = tiny_model(*words.split())
    torch.manual_seed(1)
    for seed in range(2):
        step(model, images(size=(32, 48), seed=seed))
    return model


def test_a_rule_of_ones_own_selects(rule, monkeypatch):
    """Also where the kernels of other modes work, as on a GPU."""
    features = torch.randn(2, 4, 5, 6)
    expected = features.flatten(2).norm(dim=1).sort(descending=True).indices[:, :7]
    for works in (False, True):
        monkeypatch.setattr(qs_kernels, "works", lambda device, works=works: works)
        selection = qs_attn.select_queries(features, rule, 7)
        assert torch.equal(selection.indices, expected) and selection.attention.shape == (2, 7, 30)


def test_a_rule_of_ones_own_trains_and_is_drawn(rule, tmp_path):
    losses = stepped(f"--QS_mode {rule}").get_current_losses()
    assert losses["NCE"] > 0 and losses != stepped("--QS_mode global").get_current_losses()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)).save(tmp_path / "a.png")
    make_run(tmp_path, "--nce_layers", "0,4,8,12", "--qs_layers", "12")
    words = f"--name run --checkpoints_dir {tmp_path} --modes {rule} --num_patches 5 --gpu_ids -1 --layers 8"
    words += f" --input {tmp_path}/a.png --output {tmp_path}"
    assert visualize_queries.main(words.split()) == 0
    assert f'"mode":"{rule}"' in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_a_loss_term_of_ones_own_is_learned_and_logged():
    names = {"QSModel": QSModel, "Tensor": torch.Tensor, "full": full, "MODELS": models.MODELS}
    exec(LOSS, names)
    try:
        smooth, plain = stepped("--model qs_smooth"), stepped("--model qs")
    finally:
        models.MODELS.pop("qs_smooth")
    losses = smooth.get_current_losses()
    assert losses["TV"] > 0 and "TV" not in plain.get_current_losses()
    total = losses["G_GAN"] + (losses["NCE"] + losses["NCE_Y"]) / 2 + losses["TV"]
    assert losses["G"] == pytest.approx(total)
    one, other = (torch.cat([p.flatten() for p in model.netG.parameters()]) for model in (smooth, plain))
    assert not torch.equal(one, other)
