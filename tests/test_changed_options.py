"""What an option means at a resume: what it means at a start, from there on; or it is refused by name."""

import copy
import os
import shutil

import pytest
import torch
from training_process import log_records, make_images, words, write_run_options

import train
from models import create_model
from options.train_options import TrainOptions
from util.run.saved_options import changed_options

OPTIONS = TrainOptions().parser.options
# Options whose changed value is not one step from the default, and what they need to have an effect.
VALUES = {
    "dataroot": "other", "phase": "val", "epoch": "7", "dataset_mode": "aligned", "max_dataset_size": "5",
    "crop_size": "128", "load_size": "300", "lr_decay_iters": "20 --lr_policy step",
    "lr_decay_gamma": "0.3 --lr_policy step", "display_id": "3", "display_server": "http://other",
    "display_env": "other", "pretrained_name": "other", "precision": "bf16", "preprocess": "crop",
    "vgg_weights": os.path.relpath(__file__),
    "qs_layers": "16", "qs_window": "5 --QS_mode local", "patch_size": "32",
    "nce_layers": "0,4", "attn_layers": "4,7", "n_iterations": "7", "n_iterations_decay": "7",
    "T": "0.1 --learned_attn", "augment": "false --learned_attn", "qs_variant": "released",
    "lambda_identity": "0.4", "beta1": "0.4", "beta2": "0.9",
    "attention_source": "discriminator", "patch_nums": "64", "grey_range": "0,100", "domains": "A,B,C",
}  # fmt: skip
NOT_CHANGED_HERE = {"use_wandb", "tensorboard", "cuda_graph"}  # need packages, a GPU
CHANGEABLE = [
    name for name, option in OPTIONS.items() if option.scope != "call" and name not in NOT_CHANGED_HERE
]
TINY = "--gpu_ids -1 --model cut --ngf 2 --ndf 2 --netG resnet_4blocks --netF_nc 4 --nce_layers 0,4"


def options(line):
    return TrainOptions().parse(line.split())


def changed_value(option) -> str:
    """A value that the option does not have by default, and the options that give it an effect."""
    if option.name in VALUES:
        return VALUES[option.name]
    if isinstance(option.default, bool):
        return str(not option.default)
    if option.choices:
        return str(next(choice for choice in option.choices if choice != option.default))
    return str(option.default + 1)


@pytest.mark.parametrize("name", CHANGEABLE)
def test_every_option_changed_at_a_resume_is_used_or_refused_by_name(name, tmp_path, capsys):
    option = OPTIONS[name]
    value, _, context = changed_value(option).partition(" ")
    model = (option.only or {}).get("model", ["qs"])[0]
    context += " --vgg_weights random" if model == "sesim" else ""
    context += " --domains A,B" if model in OPTIONS["domains"].only["model"] else ""
    place = f"--checkpoints_dir {tmp_path} --name run --gpu_ids -1"
    before = write_run_options(tmp_path / "run", f"{place} --model {model} {context}")
    again = f"{place} --continue_train --{name} {value}"
    if option.scope == "fixed" or name == "pretrained_name":
        with pytest.raises(SystemExit) as exit:
            options(again)
        assert exit.value.code == 2
        assert re_said(name, capsys.readouterr().err)
    else:
        opt = options(again)
        assert getattr(opt, name) != getattr(before, name)
        noted = [line.split(":")[0] for line in changed_options(tmp_path / "run", opt, OPTIONS, ("run",))]
        assert (name in noted) == (option.scope == "run")


def re_said(name, error) -> bool:
    return f"error: --{name} is " in error or f"--{name} contradict each other" in error


def test_what_the_optimisers_are_given_comes_from_the_options():
    before = create_model(options(f"{TINY} --lr 0.001"))
    after = create_model(options(f"{TINY} --lr 0.003 --beta1 0.25 --beta2 0.75 --lr_policy cosine"))
    after.load_training_state(copy.deepcopy(before.training_state()))
    after.schedule.begin(epoch=201, steps=7)
    for optimizer in after.optimizers.values():
        (group,) = optimizer.param_groups
        assert group["betas"] == (0.25, 0.75) and group["lr"] == pytest.approx(0.0015)


@pytest.mark.parametrize("before, after", [("false", "true"), ("true", "false")])
def test_moments_take_the_memory_layout_of_their_weights(before, after):
    """torch keeps the saved strides, and fused Adam reads moments in the order of memory."""
    first, second = (create_model(options(f"{TINY} --channels_last {layout}")) for layout in (before, after))
    first.set_input({domain: torch.rand(1, 3, 32, 32) for domain in "AB"})
    first.optimize_parameters()
    second.load_training_state(copy.deepcopy(first.training_state()))
    for name, optimizer in second.optimizers.items():
        saved = list(first.optimizers[name].state.values())
        for (weight, state), before in zip(optimizer.state.items(), saved, strict=True):
            assert torch.equal(state["exp_avg"], before["exp_avg"])
            assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == weight.stride()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A data set, and a run of one step in each of two epochs, the second at half the rate 0.001."""
    root = tmp_path_factory.mktemp("finished")
    make_images(root / "images", 1, 1)
    assert train.main(words(root / "images", root, "--n_epochs 1 --n_epochs_decay 1 --lr 0.001")) == 0
    return root


# Words of a resume behind the second epoch -> (epoch, learning rate) of each step that follows.
RATES = {
    "--n_epochs_decay 3": [(3, 0.0005), (4, 0.00025)],
    "--epoch_count 3 --n_epochs 3": [(3, 0.001), (4, 0.0005)],  # as CUT's documentation says it
    "--epoch_count 2": [(2, 0.0005)],
    "--n_epochs 3 --lr 0.01": [(3, 0.01), (4, 0.005)],
    "--n_epochs 3 --lr_policy plateau": [(3, 0.001), (4, 0.001)],
    "--n_epochs 3 --lr_policy step --lr_decay_iters 3": [(3, 0.001), (4, 0.0001)],
}


@pytest.mark.parametrize("line", RATES)
def test_the_rate_after_a_resume_is_that_of_the_new_options(finished, tmp_path, line):
    shutil.copytree(finished / "run", tmp_path / "run")
    again = f"--checkpoints_dir {tmp_path} --name run --gpu_ids -1 --continue_train {line}"
    assert train.main(again.split()) == 0
    found = [(record["epoch"], record["lr"]) for record in log_records(tmp_path)[2:]]
    assert [epoch for epoch, _ in found] == [epoch for epoch, _ in RATES[line]]
    assert [rate for _, rate in found] == pytest.approx([rate for _, rate in RATES[line]], rel=1e-9)
