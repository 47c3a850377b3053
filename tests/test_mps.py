"""Several processes on one GPU: NVIDIA's MPS as a stand-in plays it, and the study that uses it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from scripts import mps
from scripts.mps import Service, multi_process_service
from scripts.study import study as study_module
from scripts.study.study import Study

# A daemon is a file `control` in its folder of pipes, and is asked as NVIDIA's is.
STAND_IN = """#!/bin/sh
pipes=${CUDA_MPS_PIPE_DIRECTORY:-$HERE/default}
if [ "$1" = -d ]; then
    if [ -e $HERE/refuses ]; then echo 'first'; echo 'no permission'; exit 1; fi
    touch $pipes/control && exit
fi
if [ ! -e $pipes/control ]; then echo 'Cannot find MPS control daemon process'; exit 1; fi
read command
case $command in
get_server_list) if [ ! -e $HERE/idle ]; then echo 17; fi ;;
quit) rm $pipes/control; echo $pipes >>$HERE/ended ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="MPS exists on Linux only")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The stand-in's folder, first on the PATH."""
    program = tmp_path / mps.CONTROL
    program.write_text(STAND_IN.replace("$HERE", str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in (mps.PIPES, mps.LOGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mps, "TRIAL", mps.TRIAL.replace(", torch", "").replace("held = torch", "# "))
    return tmp_path


def folders(service: Service) -> tuple[Path, Path]:
    return Path(service.environment[mps.PIPES]), Path(service.environment[mps.LOGS])


def test_a_daemon_runs_for_the_block_even_if_that_fails(here) -> None:
    with pytest.raises(KeyboardInterrupt), multi_process_service("cuda:0") as service:
        assert service.running and service.reason == "MPS was started for this"
        pipes, logs = folders(service)
        assert (pipes / "control").exists() and logs.is_dir()
        assert len(str(pipes)) < 40  # a socket's path has at most 108 bytes
        raise KeyboardInterrupt
    assert (here / "ended").read_text().split() == [str(pipes)]
    assert not pipes.parent.exists()


def test_a_daemon_ends_with_a_process_that_is_killed(here) -> None:
    program = (
        "import os, signal\nfrom scripts import mps\nmps.TRIAL = ''\n"
        "with mps.multi_process_service('cuda:0') as service:\n"
        "    print(service.running, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[1]
    killed = subprocess.run([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE)
    assert killed.stdout == b"True\n"
    until = time.monotonic() + 30
    while not (here / "ended").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert (here / "ended").exists()


@pytest.mark.parametrize(
    "file, reason",
    [
        ("refuses", "MPS does not work here: no permission"),
        ("idle", "MPS does not work here: a process on the GPU is not served"),
    ],
)
def test_what_does_not_work_is_not_used(here, file, reason) -> None:
    (here / file).touch()
    with multi_process_service("cuda:0") as service:
        assert service == (False, {}, reason)
    assert (here / "ended").exists() == (file == "idle")  # only what has started is ended


def test_mps_of_the_user_is_left_alone(here, monkeypatch) -> None:
    (here / "default").mkdir()
    (here / "default" / "control").touch()
    with multi_process_service("cuda:0") as service:
        assert service == (True, {}, "MPS was already running")
    monkeypatch.setenv(mps.PIPES, str(here / "none"))  # which switches MPS off
    with multi_process_service("cuda:0") as service:
        assert not service.running and service.reason.startswith("CUDA_MPS_PIPE_DIRECTORY is set")
    assert not (here / "ended").exists()


def test_without_the_program_processes_take_turns(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    with multi_process_service("cuda:0") as service:
        assert service == (False, {}, "nvidia-cuda-mps-control is not on the PATH")


@pytest.mark.parametrize("running", [True, False])
def test_a_study_gives_its_trainings_the_service_and_says_so(running, tmp_path, monkeypatch) -> None:
    service = Service(running, {mps.PIPES: "pipes"} if running else {}, "a reason")
    devices = []

    @contextmanager
    def stand_in(device):
        devices.append(device)
        yield service

    def train(words, log, stop, limit, environment):
        assert environment.get(mps.PIPES) == ("pipes" if running else None)
        assert "--num_threads=2" in words  # of the four by default
        return 0, False

    monkeypatch.delenv(mps.PIPES, raising=False)
    monkeypatch.setattr(study_module, "get_device", lambda gpu_ids: torch.device("cuda", gpu_ids[0]))
    monkeypatch.setattr(study_module, "multi_process_service", stand_in)
    monkeypatch.setattr(study_module, "run_command", train)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    opt = {"out": tmp_path, "gpu_ids": [1], "jobs": 3, "seeds": [0], "minutes": 5, "n_epochs": 1}
    opt |= {"preset_options": {}, "train": {}, "judging": {}, "dataroot": "data", "n_epochs_decay": 0}
    study = Study(Namespace(**opt, preset=None), {"cut": ["--model=cut"]}, "a study")
    said = []
    monkeypatch.setattr(study, "say", said.append)
    stop = Namespace(received=0)
    with study.side_by_side():
        assert study.train(study.runs[0], stop) is None
    how = "run side by side" if running else "share the GPU in turns"
    assert said == [f"3 trainings at a time {how}: a reason", "cut_s0: training"]
    facts = study.facts("cuda:1")
    assert facts["device"] == "cuda:1, 3 trainings at a time" + " (MPS)" * running
    assert facts["budget of each run"] == "5 minutes of a shared machine"
    with study.side_by_side():  # nothing is left to train
        assert devices == ["cuda:1"]
