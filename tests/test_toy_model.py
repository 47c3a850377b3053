"""A model of two generators and two discriminators: a few lines and one entry, and everything works."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trained_run import command_of, draw_set
from training_process import assert_same_run, losses, state_of, steps_saved

import models
import train
from models.base_model import BaseModel
from models.inference import load_generator
from util.arguments import real_number
from util.weight_files import read_tensors


class ToyModel(BaseModel):
    """Least-squares GANs in both directions, with cycle consistency."""

    network_names = ("G_A", "G_B", "D_A", "D_B")
    groups = {"G": ("G_A", "G_B"), "D": ("D_A", "D_B")}
    headline = ("G", "cycle")
    loss_names = ("G", "cycle", "D")
    visual_names = ("real_A", "fake_B", "back_A", "real_B", "fake_A")

    @classmethod
    def add_options(cls, add) -> None:
        add("--toy_cycle", 10.0, "weight of the cycle", type=real_number(0))

    @classmethod
    def translating(cls, opt) -> tuple[str, ...]:
        return ("G_A",) if opt.direction == getattr(opt, "trained_direction", opt.direction) else ("G_B",)

    def build_network(self, name: str) -> nn.Module:
        if name.startswith("D_"):
            return nn.Conv2d(3, 1, 4, stride=2)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.Tanh()
        )

    def training_step(self) -> None:
        G_A, G_B, D_A, D_B = self.networks.values()
        real_A, real_B = self.batch["A"], self.batch["B"]
        fake_B, fake_A = G_A(real_A), G_B(real_B)
        back_A, back_B = G_B(fake_B), G_A(fake_A)
        self.freeze("D")
        self.losses["cycle"] = self.opt.toy_cycle * (F.l1_loss(back_A, real_A) + F.l1_loss(back_B, real_B))
        adversarial = ((D_A(fake_B) - 1) ** 2).mean() + ((D_B(fake_A) - 1) ** 2).mean()
        self.losses["G"] = adversarial + self.losses["cycle"]
        self.update("G", self.losses["G"], ["G", "cycle"])
        self.freeze("D", False)
        pairs = ((D_A, real_B, fake_B), (D_B, real_A, fake_A))
        self.losses["D"] = sum(((D(r) - 1) ** 2).mean() + (D(f.detach()) ** 2).mean() for D, r, f in pairs)
        self.update("D", self.losses["D"], ["D"])
        images = {"fake_B": fake_B, "fake_A": fake_A, "back_A": back_A}
        self.results = {name: image.detach() for name, image in images.items()}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(models.MODELS, "toy", ToyModel)


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory) -> Path:
    return draw_set(tmp_path_factory.mktemp("images"), (36, 36), trainA=5, trainB=4, testA=3, testB=2)


TINY = "--load_size 36 --crop_size 32 --print_freq 1 --num_threads 0 --display_id 0 --gpu_ids -1"


def words(dataroot: Path, checkpoints: Path, more: str = "") -> list[str]:
    place = ["--dataroot", str(dataroot), "--checkpoints_dir", str(checkpoints)]
    return [*place, *f"--model toy --name run {TINY} --n_epochs 1 --n_epochs_decay 1 {more}".split()]


@pytest.fixture
def trained(dataroot, tmp_path) -> Path:
    assert train.main(words(dataroot, tmp_path)) == 0
    return tmp_path


def test_it_trains_and_shows_its_own_losses_and_pictures(trained, capsys):
    run = trained / "run"
    weights = {f"latest_net_{name}.pth" for name in ToyModel.network_names}
    assert {path.name for path in run.glob("latest_net_*.pth")} == weights
    assert [tuple(record) for record in losses(trained)] == [ToyModel.loss_names] * 10
    shown = {path.name for path in (run / "web" / "images").glob("epoch002_*")}
    assert shown == {f"epoch002_{name}.png" for name in ToyModel.visual_names}
    page = (run / "web" / "index.html").read_text()
    curves = (run / "web" / "losses.svg").read_text()
    assert all(name in page for name in ToyModel.visual_names)
    assert all(f">{name}<" in curves for name in ToyModel.loss_names)


def test_its_option_is_its_own(dataroot, tmp_path, capsys):
    assert train.main(words(dataroot, tmp_path, "--toy_cycle 0")) == 0
    assert all(record["cycle"] == 0 for record in losses(tmp_path))
    for option, model in {"--toy_cycle 3": "cut", "--num_patches 3": "toy"}.items():
        with pytest.raises(SystemExit):
            train.main(words(dataroot, tmp_path, f"--model {model} {option}"))
        assert f"{option[:-2]} has no effect with --model {model}" in capsys.readouterr().err


def test_a_resume_is_exact(dataroot, trained, tmp_path, stop_after):
    """Stopped in the second epoch."""
    parts = tmp_path / "parts"
    stop_after(7)
    assert train.main(words(dataroot, parts)) == 143 and steps_saved(parts) == 7
    assert train.main([*words(dataroot, parts), "--continue_train"]) == 0
    assert_same_run(trained, parts)
    assert set(state_of(parts)["model"]["optimizers"]) == set(ToyModel.network_names)


def test_it_translates_in_both_directions(trained):
    """By test.py, and in Python by the networks G_A and G_B."""
    command = command_of(trained, trained / "results", "--name", "run")
    for direction, network in (("AtoB", "G_A"), ("BtoA", "G_B")):
        assert command("--direction", direction) == 0
        net = load_generator("run", trained, device="cpu", direction=direction).net
        state = read_tensors(trained / "run" / f"latest_net_{network}.pth")
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
