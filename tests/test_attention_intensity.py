"""Attention by class: the definitions by hand, label maps, and the command on a small run."""

import json

import numpy as np
import pytest
from PIL import Image

import train
from datasets import make_stripes
from scripts import attention_intensity
from scripts.attention_intensity import class_statistics, intensity, label_regions

ATTENTION = np.array([[0.9, 0.6, 0.5], [0.1, 0.0, 0.9]])


@pytest.mark.parametrize(
    "region, aware, share",
    [
        ([[1, 1, 0], [0, 0, 0]], True, 0.5),
        ([[1, 0, 1], [0, 0, 0]], True, 1.4 / 3),  # half of its pixels: 0.5 itself is not above 0.5
        ([[0, 0, 1], [1, 1, 1]], False, 0.5),
    ],
)
def test_a_class_is_aware_if_half_of_its_pixels_are_crucial(region, aware, share):
    found = intensity([(ATTENTION, {"car": np.array(region, bool)})])["car"]
    assert found["aware"] == aware and found["attention"] == pytest.approx(share)


def test_cityscapes_label_maps(tmp_path):
    """Train ids: two cars and a road in one image, a road in the other. In colours it is the same."""
    labels = np.zeros((6, 8), np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    labels[0, 0] = labels[4, 5] = labels[5, 6] = 13  # touching at a corner is one
    Image.fromarray(labels).save(tmp_path / "b.png")
    colours = np.where((labels == 13)[..., None], (0, 0, 142), (128, 64, 128)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "c.png")
    for second in ("b.png", "c.png"):
        classes = class_statistics([label_regions(tmp_path / name) for name in ("a.png", second)])
        assert classes["car"] == {"share": 0.5, "instances": 1.0}
        assert classes["road"] == {"share": 1.0, "instances": 1.0} and classes["bus"]["share"] == 0


def test_the_command_on_the_embedded_set(tmp_path, capsys):
    data = tmp_path / "stripes"
    make_stripes.make_stripes(data, size=32, train=2, test=2)
    tiny = "--gpu_ids -1 --display_id 0 --no_html --ngf 4 --ndf 4 --netG resnet_4blocks --load_size 32"
    tiny += " --crop_size 32 --num_threads 0 --n_epochs 2 --n_epochs_decay 0 --save_epoch_freq 1"
    tiny += " --model asgit --name run"
    folders = ["--dataroot", str(data), "--checkpoints_dir", str(tmp_path)]
    assert train.main([*folders, *tiny.split()]) == 0
    own = [*folders, "--gpu_ids", "-1", "--name", "run", "--out", str(tmp_path / "out")]
    assert attention_intensity.main([*own, "--epochs", "1,2", "--num_threads", "0"]) == 0
    written = json.loads((tmp_path / "out" / "attention.json").read_text())
    assert list(written["epochs"]) == ["1", "2"]
    for epoch in written["epochs"].values():
        assert epoch["animal"]["images"] == 2 and 0 <= epoch["animal"]["aware"] <= 1
        assert epoch["animal"]["attention"] + epoch["background"]["attention"] == pytest.approx(1)
        assert epoch["animal"]["area"] + epoch["background"]["area"] == pytest.approx(1)
    assert written["classes"]["animal"] == {"share": 1.0, "instances": 1.0}
    assert "animal         100.0%    1.00   1: " in capsys.readouterr().out
