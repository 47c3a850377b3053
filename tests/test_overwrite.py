"""--overwrite: the run before is renamed once nothing that could fail before the first step has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from training_process import losses, make_images, words

import train

SHORT = "--n_epochs 1 --n_epochs_decay 0"  # 5 steps


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def first(dataroot, tmp_path_factory):
    """A complete run with its page."""
    checkpoints = tmp_path_factory.mktemp("first")
    assert train.main([*words(dataroot, checkpoints, SHORT), "--no_html", "false"]) == 0
    return checkpoints


@pytest.fixture
def checkpoints(first, tmp_path):
    """A copy of that run."""
    shutil.copytree(first / "run", tmp_path / "run")
    return tmp_path


@pytest.fixture(autouse=True)
def _restore_determinism():
    yield
    torch.use_deterministic_algorithms(False)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "options, message",
    [
        ("--pretrained_name nosuchrun", "has no latest_net_G.pth to start from"),
        ("--crop_size 33", "Take 32"),
    ],
)
def test_a_run_that_cannot_be_replaced_stays(dataroot, checkpoints, capsys, options, message):
    before = contents(checkpoints / "run")
    try:
        status = train.main(words(dataroot, checkpoints, SHORT, "--overwrite", options))
    except SystemExit as end:  # options that are refused
        status = end.code
    assert status == 2 and message in capsys.readouterr().err
    assert contents(checkpoints / "run") == before and len(list(checkpoints.iterdir())) == 1


def test_the_run_before_is_kept_under_the_first_free_name(dataroot, checkpoints, capsys):
    old = contents(checkpoints / "run")
    for number in (1, 2):
        argv = words(dataroot, checkpoints, SHORT, f"--overwrite --seed {number}")
        assert train.main(argv) == 0
        said = capsys.readouterr().out
        assert f"The run before is kept in {checkpoints / f'run.replaced-{number}'}." in said
    assert contents(checkpoints / "run.replaced-1") == old
    assert len(losses(checkpoints)) == 5 and not (checkpoints / "run" / "web").exists()


def test_it_may_start_from_the_weights_of_the_run_it_replaces(dataroot, checkpoints):
    before = torch.load(checkpoints / "run" / "latest_net_G.pth", weights_only=True)
    argv = words(dataroot, checkpoints, SHORT, "--overwrite --pretrained_name run --lr 1e-12")
    assert train.main(argv) == 0
    after = torch.load(checkpoints / "run" / "latest_net_G.pth", weights_only=True)
    assert all(torch.allclose(before[key], after[key], atol=1e-7) for key in before)
