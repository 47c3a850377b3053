"""Command lines of the released QS-Attn README and of CUT's, CycleGAN's and DCLGAN's documentation."""

import re

import pytest
from trained_run import draw, make_run

import test as translation
import train
from options.test_options import TestOptions
from options.train_options import TrainOptions
from util.arguments import as_text

# Line -> what it must resolve to.
TRAINING = {
    # QS-Attn's README
    "--dataroot=datasets/horse2zebra --name=horse2zebra_qsattn_global --QS_mode=global": (
        "model=qs QS_mode=global lambda_NCE=1.0 nce_idt=true n_epochs=200"
    ),
    "--QS_mode=global": "QS_mode=global name=horse2zebra_qsattn_global",
    # CUT's README
    "--dataroot ./datasets/grumpifycat --name grumpycat_CUT --CUT_mode CUT": (
        "model=cut lambda_NCE=1.0 nce_idt=true flip_equivariance=false n_epochs_decay=200"
    ),
    "--dataroot ./datasets/grumpifycat --name grumpycat_FastCUT --CUT_mode FastCUT": (
        "model=fastcut lambda_NCE=10.0 nce_idt=false flip_equivariance=true n_epochs=150 n_epochs_decay=50"
    ),
    "--direction BtoA --CUT_mode FastCUT": "model=fastcut direction=BtoA",
    # spellings that the released parsers take
    "--CUT_mode fastcut --easy_label cats --evaluation_freq 1000": "model=fastcut",
    "--model cut --nce_idt True --no_dropout --pool_size 0": "model=cut nce_idt=true",
    # CycleGAN's README
    "--dataroot ./datasets/maps --name maps_cyclegan --model cycle_gan": (
        "netG=resnet_9blocks no_antialias=true no_antialias_up=true init_type=normal n_epochs=100 "
        "n_epochs_decay=100 pool_size=50 lambda_A=10.0 lambda_B=10.0 lambda_identity=0.5 gan_mode=lsgan"
    ),
    # DCLGAN's README
    "--dataroot ./datasets/grumpifycat --name grumpycat_DCL --model dcl": (
        "gan_mode=hinge lambda_NCE=2.0 lambda_IDT=1.0 nce_layers=4,8,12,16 no_antialias=false n_epochs=200 "
        "n_epochs_decay=200 pool_size=0"
    ),
}

TESTING = [
    "--dataroot=datasets/horse2zebra --name=horse2zebra_qsattn_global --QS_mode=global",
    "",
    "--dataroot ./datasets/grumpifycat --name grumpycat_CUT --CUT_mode CUT --phase train",
    "--dataroot datasets/cityscapes/cityscapes_val/ --direction BtoA --phase val "
    "--name cityscapes_cut_pretrained --CUT_mode CUT --num_test 500",
    "--dataroot ./datasets/horse2zebra --name maps --model cycle_gan --direction BtoA",
    "--dataroot ./datasets/horse2zebra --name grumpycat_DCL --model dcl",
    # the options of the released models, which their test.py takes too
    "--name horse2zebra_qsattn_global --QS_mode local_global --lambda_GAN 1 --lambda_NCE 1.0 "
    "--nce_idt True --nce_layers 0,4,8,12,16 --netF mlp_sample --netF_nc 256 --nce_T 0.07 --num_patches 256 "
    "--flip_equivariance False --easy_label horses --eval",
]
WITHOUT_EFFECT = set(
    "--QS_mode --lambda_GAN --lambda_NCE --nce_idt --nce_layers --netF --netF_nc --nce_T --num_patches "
    "--flip_equivariance --easy_label".split()
)
SETS = {
    "datasets/horse2zebra": "test",
    "datasets/grumpifycat": "train",
    "datasets/cityscapes/cityscapes_val": "val",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with two images of each domain for each data set that the commands name."""
    monkeypatch.chdir(tmp_path)
    for root, phase in SETS.items():
        for domain in "AB":
            for number in range(2):
                draw(tmp_path / root / f"{phase}{domain}" / f"{number}.png", seed=number)
    return tmp_path


@pytest.mark.parametrize("line", TRAINING)
def test_training_commands_resolve_to_what_they_mean_there(line, folder):
    opt = vars(TrainOptions().parse(line.split()))
    expected = dict(pair.split("=") for pair in TRAINING[line].split())
    assert {name: as_text(opt[name]) for name in expected} == expected


def test_a_training_command_starts(folder, capsys):
    line = "--dataroot ./datasets/grumpifycat --name grumpycat_CUT --CUT_mode CUT --easy_label cats --dry_run"
    assert train.main(line.split()) == 0
    printed = capsys.readouterr()
    assert "2 images A, 2 images B" in printed.out
    assert "note: no effect of --easy_label" in printed.err


@pytest.mark.parametrize("line", TESTING)
def test_test_commands_run(line, folder, capsys):
    opt = TestOptions().parse(line.split())
    make_run(folder / "checkpoints", "--model", opt.model, "--direction", opt.direction, name=opt.name)
    capsys.readouterr()
    assert translation.main(line.split()) == 0
    printed = capsys.readouterr()
    assert "translated 2 of 2 images" in printed.out
    assert (folder / "results" / opt.name / f"{opt.phase}_latest" / "index.html").is_file()
    noted = re.findall(r"--\w+", " ".join(re.findall("note: no effect of (.*?):", printed.err)))
    flags = {word.split("=")[0] for word in line.split() if word.startswith("--")}
    assert set(noted) == flags & WITHOUT_EFFECT
