"""The command line: defaults, spellings, refusals. What options do is in test_option_effects.py."""

import json
import re

import pytest
from training_process import write_run_options

from models import MODELS
from options.test_options import TestOptions
from options.train_options import TrainOptions
from util.arguments import as_text
from util.run.progress import Length
from util.run.saved_options import read_saved_options, write_options

# As the released code has them (but num_test, which was 20).
SHARED_DEFAULTS = """
dataroot=./datasets/horse2zebra name=horse2zebra_qsattn_global checkpoints_dir=./checkpoints gpu_ids=0
epoch=latest model=qs input_nc=3 output_nc=3 ngf=64 ndf=64 netD=basic netG=resnet_9blocks n_layers_D=3
normG=instance normD=instance init_type=xavier init_gain=0.02 no_dropout=true no_antialias=false
no_antialias_up=false dataset_mode=unaligned direction=AtoB serial_batches=false num_threads=4 batch_size=1
crop_size=256 max_dataset_size=inf preprocess=resize_and_crop verbose=false suffix="""
TRAIN_DEFAULTS = """
load_size=286 no_flip=false phase=train QS_mode=global lambda_GAN=1.0 lambda_NCE=1.0 nce_idt=true
nce_layers=0,4,8,12,16 netF=mlp_sample netF_nc=256 nce_T=0.07 num_patches=256 flip_equivariance=false
display_freq=400 display_ncols=4 display_server=http://localhost display_env=main display_port=8097
update_html_freq=1000 print_freq=100 no_html=false save_latest_freq=5000 save_epoch_freq=5
save_by_iter=false continue_train=false epoch_count=1 pretrained_name= n_epochs=200 n_epochs_decay=200
beta1=0.5 beta2=0.999 lr=0.0002 gan_mode=lsgan pool_size=0 lr_policy=linear lr_decay_iters=50"""
TEST_DEFAULTS = "load_size=256 phase=test results_dir=./results/ num_test=inf"


def train_options(line):
    return TrainOptions().parse(line.split())


@pytest.mark.parametrize("options, own", [(TrainOptions, TRAIN_DEFAULTS), (TestOptions, TEST_DEFAULTS)])
def test_defaults_are_the_released_ones(options, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no run has saved other ones
    opt = vars(options().parse([]))
    expected = dict(pair.split("=") for pair in f"{SHARED_DEFAULTS} {own}".split())
    assert {name: as_text(opt[name]) for name in expected} == expected


def test_booleans_are_accepted_bare_and_with_a_value():
    lines = "", "--no_flip", "--no_flip true", "--no_flip=True", "--no_flip False", "--no_flip 0"
    assert [train_options(line).no_flip for line in lines] == [False, True, True, True, False, False]


def test_what_is_given_wins_over_the_defaults_of_the_model():
    for line in ("--model fastcut", "--model cut --CUT_mode FastCUT", "--model fastcut --lambda_NCE 5"):
        opt = train_options(line)
        assert (opt.model, opt.nce_idt, opt.flip_equivariance, opt.n_epochs) == ("fastcut", False, True, 150)
        assert opt.lambda_NCE == (5 if "--lambda_NCE" in line else 10)
    unet = train_options("--netG unet_256")
    assert (unet.nce_layers, unet.qs_layers) == ([0, 1, 2, 3, 4], [3, 4])
    assert train_options("--netG unet_256 --nce_layers 0,8").nce_layers == [0, 8]


# What is typed -> what the message must say.
REFUSALS = {
    # unknown options and values
    "--QS_mod global": r"unknown option --QS_mod: did you mean --QS_mode\?",
    "stray": "cannot place 'stray'",
    "--QS_mode lo": r"argument --QS_mode: invalid choice: 'lo' \(choose from .*local_global",
    "--continue_train maybe": "--continue_train: is a boolean: write true or false, not 'maybe'",
    "--batch_size 1.5": "--batch_size: takes a whole number of at least 1, not '1.5'",
    "--display_port 99999": "at least 1 and at most 65535, not '99999'",
    "--lr 0": "--lr: takes a number above 0, not '0'",
    "--nce_layers 4,0": "ascending layer numbers such as 0,4,8,12,16, not '4,0'",
    "--gpu_ids 0,1": "for several use torchrun",
    "--name ../other": "no name of a folder under --checkpoints_dir",
    # layers and queries
    "--nce_layers 0,4,99": r"--nce_layers names layer 99, but --netG resnet_9blocks has layers 0 to 31",
    "--qs_layers 12,20": "--qs_layers names 20, which is not among --nce_layers 0,4,8,12,16",
    "--QS_mode local --qs_window 4": "--qs_window is 4: give an odd number",
    # image sizes
    "--crop_size 30": "--crop_size 30 cannot be used: the generator needs a multiple of 4.* Take 32",
    "--crop_size 16": "the discriminator at least 24 pixels. Take 24",
    "--netG unet_256 --preprocess none": "the generator needs multiples of 256",
    "--load_size 200": "--crop_size 256 is larger than --load_size 200",
    # contradictions
    "--model cut --QS_mode local": "--QS_mode has no effect with --model cut.* give --model qs",
    "--qs_window 5": "--qs_window has no effect with --QS_mode global.* give --QS_mode local or local_global",
    "--input_nc 1": "--input_nc 1 and --output_nc 3 differ",
    "--lambda_GAN 0 --lambda_NCE 0": "nothing to learn from",
    "--n_epochs 0 --n_epochs_decay 0": "nothing would be trained",
    "--n_iterations 10 --n_epochs 200": "--n_epochs has no effect, as this training is 10 iterations long",
    "--continue_train --overwrite": "--continue_train and --overwrite contradict each other",
    "--epoch 5": "--epoch 5 says which weights to start from: give --continue_train",
}


@pytest.mark.parametrize("line", REFUSALS)
def test_refused_at_once_with_status_2(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        train_options(line)
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and not printed.out
    assert re.search(REFUSALS[line], printed.err), printed.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", MODELS)
def test_help_lists_the_options_of_one_model_each_once(model, capsys):
    with pytest.raises(SystemExit, match="0"):
        train_options(f"--help --model {model}")
    listed = re.findall(r"\n  --(\w+)", capsys.readouterr().out)
    assert sorted(listed) == sorted(TrainOptions().of_model(model))
    assert len(listed) <= 95


def test_saved_options_are_read_back(tmp_path):
    opt = write_run_options(tmp_path, "--model fastcut --nce_layers 0,4 --max_dataset_size 9 --no_flip")
    table = TrainOptions().parser.options
    of_the_run = [name for name, option in table.items() if option.scope != "call"]
    assert read_saved_options(tmp_path, table) == {name: getattr(opt, name) for name in of_the_run}
    as_text = (tmp_path / "train_opt.txt").read_text()
    assert "                  no_flip: True                          \t[default: False]\n" in as_text


VALUES = {
    "ngf": "8 or 9", "lr": -1, "netG": "resnet_8blocks", "no_html": "maybe", "nce_layers": [[0]],
    "lambda_NCE": None, "batch_size": True, "seed": 2**64,
}  # fmt: skip


@pytest.mark.parametrize("text", ["{", "[1, 2]", *(json.dumps({name: v}) for name, v in VALUES.items())])
def test_saved_values_are_checked_like_typed_ones(tmp_path, text, capsys):
    (tmp_path / "train_opt.json").write_text(text)
    with pytest.raises(SystemExit) as exit:
        train_options(f"--checkpoints_dir {tmp_path.parent} --name {tmp_path.name} --continue_train")
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1
    assert re.search(r"train_opt.json(: correct it| holds no saved options)", error), error


def test_continuing_takes_the_options_of_the_run(tmp_path):
    place = f"--checkpoints_dir {tmp_path} --name run"
    write_run_options(tmp_path / "run", f"{place} --model cut --ngf 8 --gpu_ids -1 --verbose")
    again = train_options(f"{place} --continue_train --lr 0.1")
    assert (again.model, again.ngf, again.lr, again.continue_train) == ("cut", 8, 0.1, True)
    assert (again.gpu_ids, again.verbose) == ([0], False)  # of the call, not of the run
    assert train_options(place).ngf == 64


def test_a_run_without_a_name_is_called_by_its_data_and_model():
    for line, name in {
        "--QS_mode local": "horse2zebra_qsattn_local",
        "--model cycle_gan --dataroot datasets/maps/": "maps_cycle_gan",
        "--CUT_mode FastCUT --suffix b": "horse2zebra_fastcut_b",
    }.items():
        assert train_options(line).name == TestOptions().parse(line.split()).name == name


def test_a_configuration_is_the_words_of_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("# why\n--model cut --lr 0.001  # fast\n--n_epochs 3\n")
    opt = train_options(f"--config {tmp_path / 'words.txt'} --lr 0.002")
    assert (opt.model, opt.lr, opt.n_epochs, opt.name) == ("cut", 0.002, 3, "horse2zebra_cut")


@pytest.mark.parametrize(
    "line",
    [
        "--netG unet_256",
        "--model fastcut --crop_size 128",
        "--model munit",
        "--model cycle_gan --crop_late false",
    ],
)
def test_a_configuration_is_the_options_of_a_run(tmp_path, line):
    first = train_options(line)
    write_options(tmp_path, first, {})
    again = train_options(f"--config {tmp_path / 'train_opt.json'} --lr 0.002")
    changed = {"lr", "config", "given"}
    assert {k: v for k, v in vars(again).items() if k not in changed} == {
        k: v for k, v in vars(first).items() if k not in changed
    }
    assert again.lr == 0.002


def test_iterations_replace_epochs():
    lines = "", "--n_iterations 10", "--n_iterations 10 --n_iterations_decay 5", "--model munit --n_epochs 3"
    lengths = [str(Length.of(train_options(line))) for line in lines]
    assert lengths == ["400 epochs", "10 iterations", "15 iterations", "203 epochs"]
