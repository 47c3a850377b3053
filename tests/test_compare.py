"""The study launcher: statistics on made-up numbers, refusals, and a whole study of two configurations."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from datasets.make_stripes import make_stripes
from options.train_options import TrainOptions
from scripts import compare
from scripts.configurations import CONFIGS, NEED_VGG, run_options
from scripts.significance import BEYOND, HINT, WITHIN, differences, holm, summarise
from scripts.study import Study, run_command
from scripts.study_page import format_summary
from util.run.stop_signal import StopSignal

TINY = (
    "--netG resnet_4blocks --nce_layers 0,4,8 --ngf 2 --ndf 2 --netF_nc 4 --num_patches 4 --load_size 32 "
    "--crop_size 32 --max_dataset_size 3 --num_threads 0 --print_freq 1 --no_html"
).split()


# Statistics


def test_summary_is_mean_and_sample_deviation() -> None:
    summary = summarise([1.0, 2.0, 6.0])
    assert summary == {"mean": 3.0, "std": pytest.approx(math.sqrt((4 + 1 + 9) / 2))}
    assert summarise([5.0])["std"] is None  # one seed has no spread, which is not a spread of 0
    assert format_summary({"mean": 123.456, "std": 1.234}) == "123.5 ± 1.2"
    assert format_summary({"mean": 0.5, "std": None}) == "0.5"


def test_differences_agree_with_welch_on_the_raw_numbers() -> None:
    values = {"a": [1.0, 1.1, 0.9], "b": [1.5, 2.5, 2.0, 2.2], "c": [0.0, 3.0]}
    found = differences(values)
    assert [(d["first"], d["second"]) for d in found] == list(itertools.combinations("abc", 2))
    for d in found:
        expected = stats.ttest_ind(values[d["first"]], values[d["second"]], equal_var=False)
        assert d["p"] == pytest.approx(expected.pvalue)
        assert d["difference"] == pytest.approx(np.mean(values[d["first"]]) - np.mean(values[d["second"]]))
    assert [d["p_holm"] for d in found] == holm([d["p"] for d in found])


def test_verdicts() -> None:
    """Far apart; apart only without Holm's correction; within the spread; without any spread."""
    found = differences({"a": [1.0, 1.01, 0.99], "b": [5.0, 5.01, 4.99], "c": [1.025, 1.05, 1.04]})
    assert [d["verdict"] for d in found] == [BEYOND, BEYOND, BEYOND]
    found = differences({"a": [1.0, 1.2, 1.1], "b": [1.3, 1.5, 1.4], "c": [1.15, 1.35, 1.2]})
    assert [d["verdict"] for d in found] == [HINT, WITHIN, WITHIN]
    found = differences({"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [2.0, 2.0]})
    assert [d["p"] for d in found] == [1, 0, 0]


def test_holm() -> None:
    """Holm's rule, step by step: reject the smallest while p <= level / (tests left)."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values, level = rng.random(6) ** 3, rng.random()
        rejected = set()
        for left, index in zip(range(6, 0, -1), np.argsort(p_values), strict=True):
            if p_values[index] > level / left:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(holm(list(p_values))) if p <= level} == rejected


# The command line


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--configs", "cyclegan"], "there are qs_global, qs_local"),
        (["--seeds", "1,1"], "without repeats"),
        (["--minutes", "3", "--n_epochs", "2"], "two budgets"),
        (["--", "--seed", "3"], "--seed after -- is set by the study"),
        (["--configs", "cut", "--gpu_ids", "-1", "--", "--qs_window", "3"], "no effect in any configuration"),
    ],
)
def test_wrong_calls_are_refused(argv, message, capsys) -> None:
    try:
        assert compare.main(argv) == 2
    except SystemExit as stop:
        assert stop.code == 2
    assert message in capsys.readouterr().err


def parsed_runs(*argv: str) -> dict[str, Namespace]:
    """The options of train.py of each configuration that a command line names."""
    opt = compare.parse(["--gpu_ids=-1", *argv])
    return Study(opt, {name: CONFIGS[name] for name in opt.configs}, "a study").options


def test_all_configurations_take_of_the_preset_what_their_model_has() -> None:
    parsed = parsed_runs(
        "--configs", "all", "--preset", "quickstart", "--", "--lr", "0.001", "--qs_window", "5"
    )
    assert set(parsed) == set(CONFIGS) - set(NEED_VGG)
    budgets = {
        (opt.n_epochs, opt.n_epochs_decay, opt.crop_size, opt.batch_size, opt.lr) for opt in parsed.values()
    }
    assert budgets == {(20, 16, 64, 4, 0.001)}
    assert (parsed["cut"].lambda_NCE, parsed["fastcut"].lambda_NCE) == (4.0, 10.0)
    assert (parsed["qs_local"].qs_window, parsed["cycle_gan"].ngf) == (5, 16)
    assert "num_patches" in parsed["cut"].given and "num_patches" not in parsed["cycle_gan"].given
    assert parsed["qs_local"].given.count("qs_window") == 1 and "qs_window" not in parsed["qs_global"].given


def test_a_budget_given_counts_more_than_the_preset() -> None:
    for words, budget in ((["--n_epochs", "3"], (3, 16)), (["--minutes", "2"], (10**6, 0))):
        opt = parsed_runs("--configs", "cut", "--preset", "quickstart", *words)["cut"]
        assert (opt.n_epochs, opt.n_epochs_decay) == budget


def test_an_option_without_effect_under_another_one_is_left_out() -> None:
    """--n_layers_D belongs to --netD n_layers; what a configuration says itself always stays."""
    options, preset = TrainOptions(), {"netD": "n_layers", "n_layers_D": 2, "ngf": 8}
    assert run_options(options, ["--model=cut", "--netD=basic"], preset, {}) == {
        "model": "cut",
        "netD": "basic",
        "ngf": 8,
    }
    assert run_options(options, ["--model=cut"], preset, {"ngf": 4})["ngf"] == 4
    assert run_options(options, ["--model=cycle_gan", "--num_patches=4"], {}, {})["num_patches"] == 4


# From end to end


@pytest.fixture(scope="module")
def stripes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "stripes"
    make_stripes(root, size=32, train=3, test=3)
    return root


def test_a_study_is_made_once_and_names_what_fails(stripes, tmp_path, capsys) -> None:
    out = tmp_path / "study"
    argv = f"--dataroot {stripes} --out {out} --configs qs_local,cut --seeds 4 --gpu_ids -1 --n_epochs 1"
    argv = [*f"{argv} --n_epochs_decay 0 --jobs 2 --samples 2 --".split(), *TINY]
    # A run that was interrupted and cannot be continued.
    broken = out / "runs" / "cut_s4" / "latest_state.pth"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"torn")
    assert compare.main(argv) == 1
    first = capsys.readouterr()
    assert "failed: cut_s4: training ended with status" in first.err
    assert "qs_local_s4: done" in first.out
    assert "Failed: cut_s4" in (out / "index.html").read_text()

    broken.unlink()
    assert compare.main(argv) == 0
    second = capsys.readouterr().out
    assert "cut_s4: training" in second and "qs_local_s4: training" not in second
    results = json.loads((out / "study.json").read_text())
    assert [run["images"] for run in results["runs"]] == [3, 3]
    assert set(results["summaries"]) == {"SWD", "stripes-gained", "stripes-background"}
    assert results["untranslated"]["stripes-background"] == 0

    page = (out / "index.html").read_text()
    assert "<h1>Study of qs_local, cut</h1>" in page
    shown = re.findall(r'<img[^>]*src="\./([^"]+)"', page)
    assert len(shown) == 2 * (1 + 2 + 1)  # two test images: source, two translations, a target
    assert all((out / file).is_file() for file in shown)

    assert compare.main([*argv, "--lr", "0.1"]) == 2  # other options would mix two studies in one folder
    assert "trained with other options" in capsys.readouterr().err


def test_what_cannot_be_judged_is_found_before_any_training(stripes, tmp_path, capsys) -> None:
    argv = ["--dataroot", str(stripes), "--configs", "cut", "--seeds", "0", "--gpu_ids", "-1"]
    out, weights = ["--out", str(tmp_path / "study")], ["--classifier_weights", str(tmp_path / "none.pth")]
    assert compare.main([*argv, *out, *weights, "--", *TINY]) == 2
    assert "--classifier_weights: no file" in capsys.readouterr().err
    assert not (tmp_path / "study" / "runs").exists()
    damaged = tmp_path / "study" / "runs" / "cut_s0" / "compare.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    assert compare.main([*argv, *out, "--", *TINY]) == 2
    assert "is damaged" in capsys.readouterr().err


# Commands


def test_a_command_out_of_time_is_asked_to_end(tmp_path) -> None:
    patient = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True)"
    patient += "; time.sleep(99)"
    log = tmp_path / "log"
    assert run_command([sys.executable, "-c", patient], log, StopSignal(), limit=3) == (143, True)
    assert log.read_text().splitlines()[-1] == "up"
    assert run_command([sys.executable, "-c", "import sys; sys.exit(5)"], log, StopSignal(), limit=60) == (
        5,
        False,
    )


def test_a_command_ends_with_the_study(tmp_path) -> None:
    stop = StopSignal()
    stop.received = 15
    assert run_command([sys.executable, "-c", "import time; time.sleep(99)"], tmp_path / "log", stop) == (
        -15,
        False,
    )
