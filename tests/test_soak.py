"""Nothing grows over a long run: memory, open files, threads, processes."""

import json
import os
import sys
from pathlib import Path

import pytest
from training_process import TrainingProcess, make_images, state_of, words

from util.watch.monitor import Report

STEPS_AN_EPOCH, EPOCHS = 250, 10
TINY_STEP = (
    "--ngf 1 --ndf 1 --netD n_layers --n_layers_D 1 --netF_nc 2 --num_patches 4 "
    "--load_size 18 --crop_size 16 --nce_layers 0,4"
)


def resources(pid: int) -> dict[str, int]:
    """What a process and its children hold: memory in KiB, open files, threads, processes."""
    family = [pid, *(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    pages = sum(int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in family)
    memory = pages * os.sysconf("SC_PAGESIZE") // 1024
    count = {kind: sum(len(os.listdir(f"/proc/{p}/{kind}")) for p in family) for kind in ("fd", "task")}
    return {"memory": memory, "files": count["fd"], "threads": count["task"], "processes": len(family)}


def measure_at_each_epoch_end():
    """Have the training print what it holds at the end of every epoch."""
    original = Report.end_epoch

    def end_epoch(report):
        original(report)
        print("measured", json.dumps(resources(os.getpid())), flush=True)

    Report.end_epoch = end_epoch


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_long_run_does_not_grow(tmp_path):
    dataroot = make_images(tmp_path / "images", STEPS_AN_EPOCH, 9)
    options = (  # without a decaying half, at which new workers begin once
        f"--n_epochs {EPOCHS} --n_epochs_decay 0 {TINY_STEP} --num_threads 1 --cache_gb 0 --print_freq 5 "
        "--save_latest_freq 50 --save_epoch_freq 1000 --update_html_freq 50 --no_html false"
    )
    training = TrainingProcess(
        words(dataroot, tmp_path, options), tmp_path / "log", change=measure_at_each_epoch_end
    )
    assert training.wait(280) == 0, training.output()
    lines = [line for line in training.output().splitlines() if line.startswith("measured ")]
    measured = [json.loads(line.removeprefix("measured ")) for line in lines]
    assert len(measured) == EPOCHS and state_of(tmp_path)["progress"]["steps"] == EPOCHS * STEPS_AN_EPOCH

    settled, last = measured[2], measured[-1]
    growth = {name: last[name] - settled[name] for name in last}
    assert growth["memory"] < 4096  # KiB; a leak of one tiny image per step would be more
    assert growth["files"] == growth["threads"] == growth["processes"] == 0
