"""The logic of setup.sh and quickstart.sh, in small copies of the project; nothing is downloaded."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from options.train_options import TrainOptions
from util.arguments import read_words

ROOT = Path(__file__).resolve().parents[1]


def bash(script: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    """Run a script from an unrelated folder."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("QSATTN_")}
    return subprocess.run(
        ["bash", script, *arguments], cwd="/", env=own | env, capture_output=True, text=True, timeout=240
    )


def test_scripts_parse_and_stop_at_errors():
    for script in (*ROOT.glob("scripts/*.sh"), *ROOT.glob("datasets/*.sh"), ROOT / ".ci/run"):
        assert subprocess.run(["bash", "-n", script]).returncode == 0
        assert "\nset -euo pipefail\n" in script.read_text()
        assert os.access(script, os.X_OK)


# ---- setup.sh ----


def make_wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A set-up project in a path with a space; its one requirement is a wheel."""
    project = tmp_path_factory.mktemp("a project")
    (project / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", project / "scripts")
    make_wheel(project, "torch", "2.0")
    find = f"--no-index\n--find-links {project.as_uri()}\n"
    (project / "requirements.txt").write_text(f"{find}torch>=2,<3  # a note\n")
    done = bash(project / "scripts/setup.sh", QSATTN_PYTHON=sys.executable, QSATTN_TORCH="cuda")
    assert done.returncode == 0, done.stderr
    return project


def test_setup_again_does_nothing_and_after_an_interruption_begins_again(project):
    setup = project / "scripts/setup.sh"
    assert bash(setup).stdout == ""
    more = project / "more.txt"
    more.write_text("--no-index\nno-such-package\n")
    done = bash(setup, "requirements.txt", "more.txt")
    assert done.returncode == 1 and "no-such-package" in done.stderr
    more.write_text("--no-index\n")
    assert "installing more.txt" in bash(setup, "requirements.txt", "more.txt").stdout

    for pip in project.glob(".venv/lib/python*/site-packages/pip"):  # an interrupted creation of .venv
        shutil.rmtree(pip)
    done = bash(setup, QSATTN_PYTHON="false")
    assert done.returncode == 2 and "no Python 3.10 to 3.13" in done.stderr
    done = bash(setup, QSATTN_PYTHON=sys.executable, QSATTN_TORCH="cuda")
    assert done.returncode == 0 and "making .venv" in done.stdout
    assert "installing requirements.txt" in done.stdout


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
DRAW, MEASURE = "datasets/make_stripes.py", "scripts/evaluate.py"


def test_quickstart_resumes_an_interrupted_training_and_repeats_nothing(tmp_path):
    """It trains with the preset that scripts/compare.py reads, and refuses the run of another."""
    for file, text in (("scripts/setup.sh", ""), (".venv/bin/python", FAKE_PYTHON)):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
        (tmp_path / file).chmod(0o755)
    script = Path(shutil.copy(ROOT / "scripts/quickstart.sh", tmp_path / "scripts"))
    shutil.copytree(ROOT / "scripts/presets", tmp_path / "scripts/presets")

    def quickstart() -> tuple[subprocess.CompletedProcess, dict[str, list[str]]]:
        """The script's end, and the commands it ran."""
        (tmp_path / "calls").unlink(missing_ok=True)
        done = bash(script)
        calls = [call.split() for call in (tmp_path / "calls").read_text().splitlines()]
        return done, {call[0]: call[1:] for call in calls}

    (tmp_path / "interrupt").touch()
    done, calls = quickstart()
    assert done.returncode == 1 and list(calls) == [DRAW, "train.py"]
    (tmp_path / "interrupt").unlink()
    done, calls = quickstart()
    assert done.returncode == 0, done.stderr
    assert list(calls) == [DRAW, "train.py", "test.py", MEASURE]
    words, preset = calls["train.py"], read_words(tmp_path / "scripts/presets/quickstart.txt")
    place = words.index(preset[0])
    assert words[place : place + len(preset)] == preset and words[-1] == "--continue_train"
    opt = TrainOptions().parse([*words[:-1], "--gpu_ids=-1", f"--checkpoints_dir={tmp_path}"])
    assert (opt.QS_mode, opt.normG, opt.n_epochs + opt.n_epochs_decay) == ("global", "batch", 36)
    done, calls = quickstart()
    assert list(calls) == [DRAW, MEASURE] and "start afresh" in done.stdout
    file = tmp_path / "scripts/presets/quickstart.txt"
    file.write_text(re.sub(r"--ngf \d+", "--ngf 7", file.read_text()))
    done, calls = quickstart()
    assert done.returncode == 2 and "another preset" in done.stderr and list(calls) == [DRAW]
