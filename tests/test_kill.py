"""A training that is killed, stopped or started twice: nothing is lost but the steps since the last save."""

import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest
from training_process import TrainingProcess, assert_same_run, losses, steps_saved, words

from util.run.lock import is_held
from util.run.stop_signal import SIGNALS, StopSignal

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork, POSIX signals and locks")
LONG = "--n_epochs 1000 --cache_gb 0"


def saving(run: Path) -> bool:
    """Whether a checkpoint is being written at this moment."""
    return any(name.endswith(".tmp") for name in os.listdir(run)) if run.is_dir() else False


def kill_at(training: TrainingProcess, run: Path, moment: str, chance: random.Random) -> None:
    """Kill it in its start, within a save, or at any time from its first steps on."""
    if moment == "starting":
        time.sleep(chance.uniform(0, 0.3))
    else:
        begun = len(losses(run.parent)) + chance.randrange(1, 3)  # a resume cuts the log before it adds to it
        training.wait_until(lambda: len(losses(run.parent)) >= begun)
        if moment == "saving":
            training.wait_until(lambda: saving(run), pause=0.0005)
            time.sleep(chance.uniform(0, 0.004))
        else:
            time.sleep(chance.uniform(0, 0.05))
    training.kill()


@pytest.mark.parametrize(
    "model, workers, kills, save_freq, epochs",
    [
        ("cut", 0, 15, 1, 16),
        ("cut", 2, 5, 2, 11),
        ("cycle_gan", 0, 5, 1, 7),
        ("qs_multi", 0, 3, 1, 7),
        ("stargan", 0, 3, 1, 7),  # also between two updates of G
    ],
)
def test_killed_at_random_moments_it_ends_as_if_never_killed(
    dataroot, tmp_path, model, workers, kills, save_freq, epochs
):
    chance = random.Random(workers)
    argv = [
        f"--n_epochs {epochs - 6} --n_epochs_decay 6 --save_epoch_freq 3 --cache_gb 0",
        f"--num_threads {workers} --save_latest_freq {save_freq}",
        *(["--pool_size 3"] if model in ("cut", "cycle_gan") else []),
    ]
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    undisturbed = TrainingProcess(words(dataroot, whole, *argv, model=model), tmp_path / "log of the whole")

    saved, cut_saves, run = 0, 0, killed / "run"
    for number in range(kills):
        more = ["--continue_train"] if (run / "train_opt.json").exists() else []
        training = TrainingProcess(words(dataroot, killed, *argv, *more, model=model), log)
        kill_at(training, run, ("any", "saving", "any", "saving", "starting")[number % 5], chance)
        assert training.process.exitcode == -signal.SIGKILL, training.output()
        cut_saves += saving(run)
        before, saved = saved, steps_saved(killed)  # reading it says that it is whole
        assert saved >= before
        assert saved >= len(losses(killed)) - save_freq  # not more is lost than what came after the last save
    assert saved < 5 * epochs, "the run ended before all the kills were done"

    assert TrainingProcess(words(dataroot, killed, "--continue_train", model=model), log).wait() == 0
    assert undisturbed.wait() == 0
    assert_same_run(whole, killed)
    files = [sorted(path.name for path in folder.glob("run/*.pth")) for folder in (whole, killed)]
    assert files[0] == files[1]
    assert not saving(run) and "Traceback" not in log.read_text()
    assert cut_saves  # some kills were within the writing of a checkpoint


@pytest.mark.parametrize("number, workers", [(number, 2) for number in SIGNALS] + [(signal.SIGINT, 0)])
def test_a_signal_lets_it_finish_its_step_save_and_say_so(dataroot, tmp_path, number, workers):
    argv = words(dataroot, tmp_path, LONG, f"--num_threads {workers}")
    training = TrainingProcess(argv, tmp_path / "log")
    training.wait_until(lambda: len(losses(tmp_path)) >= 3)
    os.killpg(training.pid, number)  # as Ctrl-C in a terminal: to the workers too
    assert training.wait() == 128 + number
    output = training.output()
    assert "Stopping after this step" in output and "Continue:  train.py" in output
    assert "Traceback" not in output
    assert steps_saved(tmp_path) == len(losses(tmp_path)) >= 3


def step_without_end():
    from models.cut_model import CUTModel

    def step(model):
        print("in a step", flush=True)
        while True:
            time.sleep(0.1)

    CUTModel.optimize_parameters = step


def test_a_second_signal_ends_it_at_once(dataroot, tmp_path):
    argv = words(dataroot, tmp_path, LONG, "--num_threads 2")
    training = TrainingProcess(argv, tmp_path / "log", change=step_without_end)
    training.wait_until(lambda: "in a step" in training.output())
    os.killpg(training.pid, signal.SIGINT)
    training.wait_until(lambda: "exits at once" in training.output())
    time.sleep(1.1)
    os.killpg(training.pid, signal.SIGTERM)
    assert training.wait() == 143
    assert "Traceback" not in training.output()


def test_a_repeated_warning_is_the_first_one_again_and_nohup_is_respected(monkeypatch):
    """The kernel and the shell both report a closed terminal; SIGXCPU comes every second."""
    with StopSignal() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU, signal.SIGTERM):
            os.kill(os.getpid(), number)  # SIGTERM too, so shortly after
        assert stop.received == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_name_is_for_one_run_and_a_dead_holder_frees_it(dataroot, tmp_path):
    argv = words(dataroot, tmp_path, LONG, "--num_threads 2 --save_latest_freq 1")
    first = TrainingProcess(argv, tmp_path / "first.log")
    first.wait_until(lambda: steps_saved(tmp_path) >= 2)
    second = TrainingProcess([*argv, "--overwrite"], tmp_path / "second.log")
    assert second.wait() == 2 and is_held(tmp_path / "run") and not is_held(tmp_path)
    assert f"is being trained by process {first.pid} on {socket.gethostname()}" in second.output()
    assert first.process.is_alive()
    first.kill()  # its workers live on for a few seconds
    third = TrainingProcess([*argv, "--continue_train"], tmp_path / "third.log")
    before = steps_saved(tmp_path)
    third.wait_until(lambda: steps_saved(tmp_path) > before)
    third.kill()


def test_a_run_without_a_save_begins_again_and_an_unknown_one_does_not(dataroot, tmp_path):
    argv = words(dataroot, tmp_path, "--n_epochs 1 --n_epochs_decay 1")
    training = TrainingProcess([*argv, "--num_threads", "2"], tmp_path / "log", change=step_without_end)
    training.wait_until(lambda: "in a step" in training.output())
    training.kill()
    again = TrainingProcess([*argv, "--continue_train"], tmp_path / "again.log")
    assert again.wait() == 0
    assert "Nothing was saved in" in again.output() and steps_saved(tmp_path) == 10
    unknown = TrainingProcess([*argv, "--continue_train", "--name", "nun"], tmp_path / "unknown.log")
    assert unknown.wait() == 2 and "there is no run" in unknown.output()
    assert not (tmp_path / "nun").exists()
