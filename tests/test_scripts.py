"""The logic of setup.sh and quickstart.sh, in small copies of the project; nothing is downloaded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    *sorted((ROOT / "scripts").glob("*.sh")),
    *sorted((ROOT / "datasets").glob("*.sh")),
    ROOT / ".ci/run",
]


def bash(script: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    """Run a script from an unrelated folder."""
    return subprocess.run(
        ["bash", script, *arguments],
        cwd="/",
        env={name: value for name, value in os.environ.items() if name != "QSATTN_PYTHON"} | env,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_stop_at_errors(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert "\nset -euo pipefail\n" in script.read_text()
    assert os.access(script, os.X_OK)


# ---- setup.sh ----


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A set-up project in a path with a space; its one requirement is a wheel, marked as visdom is."""
    project = tmp_path_factory.mktemp("a project")
    (project / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", project / "scripts")
    shutil.copy(ROOT / "build-constraints.txt", project)
    with zipfile.ZipFile(project / "demo-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("demo.py", "")
        wheel.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        wheel.writestr(
            "demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("demo-1.0.dist-info/RECORD", "")
    (project / "requirements.txt").write_text(
        f'--no-index\n--find-links {project.as_uri()}\ndemo>=1; extra == "visdom"\n'
    )
    done = bash(project / "scripts/setup.sh", QSATTN_PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    return project


def test_setup_installs_what_plain_pip_skips(project):
    assert subprocess.run([project / ".venv/bin/python", "-c", "import demo"]).returncode == 0


def test_setup_again_does_nothing_at_once(project):
    begun = time.monotonic()
    done = bash(project / "scripts/setup.sh")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - begun < 2
    assert bash(project / "scripts/setup.sh", QSATTN_PYTHON=sys.executable).stdout == ""


def test_setup_after_an_interruption_begins_again(project):
    more = project / "more.txt"
    more.write_text("--no-index\nno-such-package\n")
    for _ in range(2):  # the second call fails as well
        done = bash(project / "scripts/setup.sh", "requirements.txt", "more.txt")
        assert done.returncode == 1 and "no-such-package" in done.stderr
    more.write_text("--no-index\n")
    assert "installing more.txt" in bash(project / "scripts/setup.sh", "requirements.txt", "more.txt").stdout
    assert bash(project / "scripts/setup.sh", "requirements.txt", "more.txt").stdout == ""

    for pip in project.glob(".venv/lib/python*/site-packages/pip"):  # an interrupted creation of .venv
        shutil.rmtree(pip)
    (project / ".venv/installed-requirements.txt").unlink()
    done = bash(project / "scripts/setup.sh", "requirements.txt", "more.txt")
    assert done.returncode == 0 and "making .venv" in done.stdout
    assert "installing requirements.txt" in done.stdout and "installing more.txt" in done.stdout


def test_setup_names_what_is_wrong(project, tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = bash(project / "scripts/setup.sh", QSATTN_PYTHON=str(old))
    assert done.returncode == 2
    assert "no Python 3.10 to 3.13" in done.stderr and "python3.9 is Python 3.9.18" in done.stderr
    done = bash(project / "scripts/setup.sh", "nothing.txt")
    assert done.returncode == 2 and "no nothing.txt" in done.stderr


def test_requirements_name_visdom_for_setup_and_hide_it_from_pip():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    (visdom,) = (line for line in lines if line.startswith("visdom"))
    assert re.fullmatch(r'visdom>=[\d.]+,<[\d.]+; extra == "visdom"', visdom)


def test_the_lowest_versions_are_those_that_the_requirements_promise():
    """The first release within each lower bound: 2.3 may be 2.3.1 where there is no 2.3.0."""
    pattern = re.compile(r"^([\w-]+)(?:>=|==)([\d.]+)", re.MULTILINE)
    texts = [(ROOT / name).read_text() for name in ("requirements.txt", "requirements-dev.txt")]
    bounds = dict(pair for text in texts for pair in pattern.findall(text))
    lowest = dict(pattern.findall((ROOT / "constraints-lowest.txt").read_text()))
    assert lowest.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert lowest[name] == bound or lowest[name].startswith(f"{bound}."), name


# ---- quickstart.sh ----

FAKE_PYTHON = """#!/usr/bin/env bash
# Records what it is asked to run and creates the files that this would create.
echo "$@" >>calls
name=stripes_qsattn_global
case $1 in
    train.py)
        mkdir -p "checkpoints/$name" && touch "checkpoints/$name/latest_net_G.pth" && [[ ! -e interrupt ]]
        ;;
    test.py)
        sleep 0.02 && mkdir -p "results/$name/test_latest" && touch "results/$name/test_latest/index.html"
        ;;
esac
"""


@pytest.fixture
def quickstart(tmp_path):
    """A function that runs the copy and returns its result and the commands it ran."""
    for file, text in (("scripts/setup.sh", ""), (".venv/bin/python", FAKE_PYTHON)):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
        (tmp_path / file).chmod(0o755)
    script = tmp_path / "scripts/quickstart.sh"
    shutil.copy(ROOT / "scripts/quickstart.sh", script)
    shutil.copytree(ROOT / "scripts/presets", tmp_path / "scripts/presets")

    def run() -> tuple[subprocess.CompletedProcess, list[str]]:
        (tmp_path / "calls").unlink(missing_ok=True)
        done = bash(script)
        return done, [call.split()[0] for call in (tmp_path / "calls").read_text().splitlines()]

    return run


DRAW, MEASURE = "datasets/make_stripes.py", "-"


def test_quickstart_runs_everything_once(quickstart, tmp_path):
    done, calls = quickstart()
    assert done.returncode == 0, done.stderr
    assert calls == [DRAW, "train.py", "test.py", MEASURE]
    assert f"{tmp_path}/results/stripes_qsattn_global/test_latest/index.html" in done.stdout
    done, calls = quickstart()
    assert calls == [DRAW, MEASURE] and "start afresh" in done.stdout


def test_quickstart_resumes_an_interrupted_training(quickstart, tmp_path):
    (tmp_path / "interrupt").touch()
    done, calls = quickstart()
    assert done.returncode == 1 and calls == [DRAW, "train.py"]
    (tmp_path / "interrupt").unlink()
    done, calls = quickstart()
    assert calls == [DRAW, "train.py", "test.py", MEASURE]
    assert "--continue_train" in (tmp_path / "calls").read_text()


def test_quickstart_refuses_the_result_of_another_preset(quickstart, tmp_path):
    quickstart()
    preset = tmp_path / "scripts/presets/quickstart.txt"
    preset.write_text(re.sub(r"--ngf \d+", "--ngf 7", preset.read_text()))
    done, calls = quickstart()
    assert done.returncode == 2 and "another preset" in done.stderr and calls == [DRAW]


def test_quickstart_trains_with_its_preset(quickstart, tmp_path):
    """It gives train.py the words that scripts/compare.py --preset quickstart reads, and they exist."""
    from options.train_options import TrainOptions
    from scripts.configurations import read_preset

    quickstart()
    (call,) = (line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("train.py"))
    words, preset = call.split()[1:], read_preset("quickstart")
    place = words.index(preset[0])
    assert words[place : place + len(preset)] == preset
    train = TrainOptions().parse([*words, "--gpu_ids=-1", f"--checkpoints_dir={tmp_path}"])
    assert (train.QS_mode, train.normG, train.n_epochs + train.n_epochs_decay) == ("global", "batch", 36)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_pipe_ends_in_a_quiet_grep(script):
    """It exits at the first match; the writer may then be killed, which `pipefail` reports as a failure."""
    assert not re.search(r"\|\s*grep\s+-\w*q", script.read_text(encoding="utf-8"))
