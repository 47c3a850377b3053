"""Several processes train as one: the same numbers, one writer, no hanging."""

import functools
import os
import re
import signal
import sys

import pytest
import torch
from training_process import (
    TrainingProcess,
    assert_same_run,
    in_float64,
    losses,
    make_images,
    ranks_env,
    state_of,
    steps_saved,
    words,
)

from util.watch.monitor import Report

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and killed")
SCHEDULE = "--n_epochs 2 --n_epochs_decay 1"


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), 6, 5)


def start_two(dataroot, checkpoints, *more, change=None, model="cut"):
    """Two processes with one image each a step, as torchrun starts them."""
    checkpoints.mkdir(exist_ok=True)
    argv = words(dataroot, checkpoints, SCHEDULE, *more, model=model)
    logs = [checkpoints / f"rank{rank}.log" for rank in range(2)]
    return [TrainingProcess(argv, log, env, change) for log, env in zip(logs, ranks_env(2), strict=True)]


def one(dataroot, checkpoints, *more, change=None, model="cut"):
    """One process with both images of each step; its exit status."""
    checkpoints.mkdir(exist_ok=True)
    argv = words(dataroot, checkpoints, SCHEDULE, "--batch_size 2", *more, model=model)
    return TrainingProcess(argv, checkpoints / "one.log", change=change).wait()


def stop_after_five():
    """Train in float64; a signal to the first process after five steps stops all."""
    in_float64()
    step, count = Report.step, iter(range(1, 1000))

    def asked(report):
        step(report)
        if next(count) == 5 and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGTERM)

    Report.step = asked


def assert_same_training(a, b):
    """Two runs agree but for rounding, which steps amplify, so that they saw the same images in each step.

    In float64, where Adam does not turn rounding noise of gradients that should be 0 into whole steps.
    """
    assert len(losses(a)) >= 9  # 3 epochs of 6 images, of some models more, in global batches of 2
    for found, expected in zip(losses(a), losses(b), strict=True):
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-8)  # rounding grows from step to step
    first, second = (state_of(folder)["model"]["networks"] for folder in (a, b))
    # A step is 2e-4. Biases before an instance norm, whose gradient is rounding noise, differ by up to 2e-8.
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def single(dataroot, tmp_path_factory):
    """single(model): the run of one process with both images of each step, trained once."""

    @functools.cache
    def trained(model):
        checkpoints = tmp_path_factory.mktemp(model)
        pool = ["--pool_size 0"] * (model in ("cycle_gan", "asgit"))  # each process has its own
        assert one(dataroot, checkpoints, *pool, change=in_float64, model=model) == 0
        return checkpoints

    return trained


@pytest.mark.parametrize("model", ["cut", "cycle_gan", "asgit", "qs_dual", "qs_multi", "stargan", "munit"])
def test_two_processes_train_as_one_with_the_same_global_batch(dataroot, single, tmp_path, model):
    """Negatives of qs_dual are the patches of all; stargan mixtures, munit styles are drawn for all.

    ASGIT's processes each remember the maps of all images.
    """
    pool = ["--pool_size 0"] * (model in ("cycle_gan", "asgit"))
    both = start_two(dataroot, tmp_path, *pool, change=in_float64, model=model)
    assert [process.wait() for process in both] == [0, 0]
    assert_same_training(tmp_path, single(model))
    assert "(epoch: 1, iters: 2" in both[0].output() and "End of epoch 3 / 3" in both[0].output()
    if model == "asgit":
        runs = (state_of(folder)["model"]["memories"] for folder in (tmp_path, single(model)))
        twins, (alone,) = ([maps["_extra_state"] for maps in run["attention_A"]] for run in runs)
        for memory in twins:
            assert memory["paths"] == alone["paths"] and torch.equal(memory["windows"], alone["windows"])
            torch.testing.assert_close(memory["maps"], alone["maps"], rtol=0, atol=1e-6)
    assert not both[1].output()  # one writer: the second process prints and saves nothing


def test_two_processes_resume_exactly_each_with_its_pool(dataroot, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"change": in_float64, "model": "cycle_gan"}
    undisturbed = start_two(dataroot, whole, "--pool_size 2", **options)
    assert [process.wait() for process in undisturbed] == [0, 0]
    begun = start_two(dataroot, parts, "--pool_size 2", change=stop_after_five, model="cycle_gan")
    assert [process.wait() for process in begun] == [143, 143]
    pools = state_of(parts)["model"]["memories"]["pool_D_A"]  # of each process
    assert len(pools) == 2 and not torch.equal(pools[0]["images"], pools[1]["images"])
    assert steps_saved(parts) == 5
    again = start_two(dataroot, parts, "--pool_size 2 --continue_train", **options)
    assert [process.wait() for process in again] == [0, 0]
    assert_same_run(whole, parts)


def test_a_resume_may_change_the_number_of_processes(dataroot, single, tmp_path):
    begun = start_two(dataroot, tmp_path, change=stop_after_five)
    assert [process.wait() for process in begun] == [143, 143]
    assert one(dataroot, tmp_path, "--continue_train --batch_size 3") == 2
    assert "resume with the global batch it was trained with" in (tmp_path / "one.log").read_text()
    assert one(dataroot, tmp_path, "--continue_train", change=in_float64) == 0
    assert_same_training(tmp_path, single("cut"))


def with_nan(step=4):
    """Have the second process see an image with a NaN in one step."""
    from models.base_model import BaseModel

    take_batch, count = BaseModel.set_input, iter(range(1, 1000))

    def set_input(model, batch):
        take_batch(model, batch)
        if next(count) == step and os.environ["RANK"] == "1":
            model.batch["A"][0, 0, 0, 0] = float("nan")

    BaseModel.set_input = set_input


def test_a_nan_in_one_process_stops_both(dataroot, tmp_path):
    both = start_two(dataroot, tmp_path, "--save_latest_freq 2", change=with_nan)
    assert [process.wait() for process in both] == [2, 2]
    assert len(re.findall("^error: .*not finite.*", both[0].output(), re.M)) == 1
    assert steps_saved(tmp_path) == 3


@pytest.mark.parametrize("lost", [0, 1])
def test_when_one_process_dies_the_other_says_so_and_stops(dataroot, tmp_path, lost):
    both = start_two(dataroot, tmp_path, "--n_epochs 1000 --num_threads 1 --cache_gb 0 --save_latest_freq 2")
    both[0].wait_until(lambda: steps_saved(tmp_path) >= 3)
    both[lost].kill()
    other = both[1 - lost]
    assert other.wait() == 1
    assert "another process of this training was lost" in other.output() and "Traceback" not in other.output()


@pytest.mark.parametrize("model, options", [("cut", "--normG batch"), ("dcl", "--preprocess none")])
def test_what_processes_cannot_share_is_refused(dataroot, tmp_path, model, options):
    both = start_two(dataroot, tmp_path, options, model=model)
    assert [process.wait() for process in both] == [2, 2]
    assert options.split()[0] in both[0].output() and "a single process" in both[0].output()
