"""Studies and ablations: statistics on made-up numbers, refusals, and whole small studies."""

import itertools
import json
import re
import shlex
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from datasets.make_stripes import make_stripes
from options.train_options import TrainOptions
from scripts import ablations, compare
from scripts.compare import CONFIGS, NEED_VGG, Study, run_command, run_options
from scripts.study_page import differences, format_summary, holm, study_results
from util.run.stop_signal import StopSignal

QUICKSTART = "scripts/presets/quickstart.txt"
TINY = (
    "--netG resnet_4blocks --ngf 2 --ndf 2 --load_size 32 --crop_size 32 --max_dataset_size 3 "
    "--num_threads 0 --print_freq 1 --no_html"
).split()


# Statistics


def test_summary_is_mean_and_sample_deviation() -> None:
    runs = [{"label": "a", "numbers": {"FID": number}} for number in (1.0, 2.0, 6.0)]
    runs += [{"label": "b", "numbers": {"FID": 5.0}}, {"label": "b", "numbers": None}]
    summaries = study_results(runs)["summaries"]["FID"]
    assert summaries["a"] == {"mean": 3.0, "std": pytest.approx(7**0.5)}
    assert summaries["b"] == {"mean": 5.0, "std": None}  # one seed has no spread, which is not one of 0
    assert (format_summary(123.456, 1.234), format_summary(0.5, None)) == ("123.5 ± 1.2", "0.5")


@pytest.mark.filterwarnings("ignore")
def test_differences_agree_with_welch_on_the_raw_numbers() -> None:
    """A single seed is left out. Without any spread, means are equal or differ with certainty."""
    values = {"a": [1.0, 1.1, 0.9], "b": [1.5, 2.5, 2.0, 2.2], "c": [0.0, 3.0], "d": [1.0], "e": [3.0, 0.0]}
    found = differences(values)
    assert [(d["first"], d["second"]) for d in found] == list(itertools.combinations("abce", 2))
    for d in found:
        expected = stats.ttest_ind(values[d["first"]], values[d["second"]], equal_var=False)
        assert d["p"] == pytest.approx(expected.pvalue)
        assert d["difference"] == pytest.approx(np.mean(values[d["first"]]) - np.mean(values[d["second"]]))
    assert [d["p_holm"] for d in found] == holm([d["p"] for d in found])
    assert [d["p"] for d in differences({"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [2.0, 2.0]})] == [1, 0, 0]


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
        (["--seeds", "1,-1"], "takes a whole number"),
        (["--config", "none.txt"], "none.txt"),
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
    return compare.study_of(["--gpu_ids=-1", *argv]).options


def test_all_configurations_take_of_the_common_options_what_their_model_has() -> None:
    parsed = parsed_runs("--configs", "all", "--config", QUICKSTART, *"-- --lr 0.001 --qs_window 5".split())
    assert set(parsed) == set(CONFIGS) - set(NEED_VGG)
    budgets = {
        (opt.n_epochs, opt.n_epochs_decay, opt.crop_size, opt.batch_size, opt.lr) for opt in parsed.values()
    }
    assert budgets == {(20, 16, 64, 4, 0.001)}
    assert (parsed["cut"].lambda_NCE, parsed["fastcut"].lambda_NCE) == (4.0, 10.0)
    assert (parsed["qs_local"].qs_window, parsed["cycle_gan"].ngf) == (5, 16)
    assert "num_patches" in parsed["cut"].given and "num_patches" not in parsed["cycle_gan"].given
    assert parsed["qs_local"].given.count("qs_window") == 1 and "qs_window" not in parsed["qs_global"].given


def test_an_option_without_effect_under_another_one_is_left_out() -> None:
    """--n_layers_D belongs to --netD n_layers; what a configuration says itself always stays."""
    common = {"netD": "n_layers", "n_layers_D": 2, "ngf": 8}
    taken = {"model": "cut", "netD": "basic", "ngf": 8}
    assert run_options(["--model=cut", "--netD=basic"], common, {}) == taken
    assert run_options(["--model=cut"], common, {"ngf": 4})["ngf"] == 4
    assert run_options(["--model=cycle_gan", "--num_patches=4"], {}, {})["num_patches"] == 4


# From end to end


@pytest.fixture(scope="module")
def stripes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "horse2zebra"
    make_stripes(root, size=32, train=3, test=3)
    return root


def test_a_study_is_made_once_and_names_what_fails(stripes, tmp_path, capsys) -> None:
    out = tmp_path / "study"
    argv = f"--dataroot {stripes} --out {out} --configs qs_local,cut --seeds 4 --gpu_ids -1 --n_epochs 1"
    argv = f"{argv} --n_epochs_decay 0 --jobs 2 --samples 2 -- --nce_layers 0,4,8 --netF_nc 4 --num_patches 4"
    argv = [*argv.split(), *TINY]
    # A run that was interrupted and cannot be continued.
    broken = out / "runs" / "cut_s4" / "latest_state.pth"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"torn")
    assert compare.main(argv) == 1
    first = capsys.readouterr()
    assert "failed: cut_s4: train.py ended with status" in first.err and "qs_local_s4: done" in first.out
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


def test_a_command_ends_with_the_study(tmp_path) -> None:
    stop, log = StopSignal(), tmp_path / "log"
    assert run_command([sys.executable, "-c", "import sys; sys.exit(5)"], log, stop) == 5
    stop.received = 15
    assert run_command([sys.executable, "-c", "import time; time.sleep(99)"], log, stop) == -15


# Ablations

ABLATIONS = {
    "queries": (
        lambda opt: (opt.model, opt.num_patches),
        [(model, number) for model in ("qs", "cut") for number in (64, 128, 256, 512)],
    ),
    "layers": (lambda opt: (opt.qs_layers, opt.qs_pool), [([12, 16], 0), ([0, 4, 8, 12, 16], 64)]),
    "modes": (lambda opt: opt.QS_mode, ["global", "local", "local_global"]),
    "window": (
        lambda opt: (opt.QS_mode, opt.qs_window),
        [(mode, side) for mode in ("local", "local_global") for side in (3, 5, 7, 9, 11)],
    ),
    "fusion": (lambda opt: (opt.model, opt.attention_stage), [("asgit", f"F{stage}") for stage in range(5)]),
}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_printed_trainings_parse(ablation, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [ablation, "--print", "--gpu_ids", "-1", "--dataroot", "./my data", "--", "--ngf", "8"]
    assert ablations.main(argv) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    opts = [TrainOptions().parse([*line[2:], "--gpu_ids=-1"]) for line in lines]
    seen, expected = ABLATIONS[ablation]
    assert [seen(opt) for opt in opts] == expected
    assert {(opt.dataroot, opt.ngf) for opt in opts} == {("./my data", 8)}
    published = ablations.ABLATIONS[ablation].get("published", {}).values()
    assert all(set(numbers) <= set(ablations.ABLATIONS[ablation]["settings"]) for numbers in published)


def test_the_published_numbers_shown_are_those_of_the_setting_and_the_data(monkeypatch) -> None:
    studies = []
    monkeypatch.setattr(Study, "run", lambda study: studies.append(study) or 0)
    for data in ("horse2zebra", "cat2dog", "mine"):
        argv = ["layers", "--only", "all_five", "--gpu_ids", "-1", "--dataroot", f"./datasets/{data}"]
        assert ablations.main(argv) == 0
    shown = [study.published["numbers"] for study in studies]
    assert shown[:2] == [{"all_five": {"FID": 40.4, "SWD": 32.5}}, {"all_five": {"FID": 73.1, "SWD": 12.6}}]
    assert shown[2] == shown[0] and "horse2zebra" in studies[2].published["source"]


def test_the_page_shows_our_numbers_beside_the_published_ones(stripes, tmp_path) -> None:
    """In both directions, each with its pictures, where an ablation asks for them."""
    argv = (
        f"fusion --only F2 --gpu_ids -1 --dataroot {stripes} --out {tmp_path} --n_epochs 1 --n_epochs_decay 0"
    )
    assert ablations.main([*argv.split(), "--", *TINY]) == 0
    results = json.loads((tmp_path / "study.json").read_text())
    (run,) = results["runs"]
    assert set(run["numbers"]) == {"SWD", "SWD BtoA", "stripes-gained", "stripes-background"}
    assert set(results["untranslated"]) == set(run["numbers"])
    page = (tmp_path / "index.html").read_text()
    assert "published: 0.0129 ± 0.0051" in page and "supplement of ASGIT, horse2zebra" in page
    for folder in ("test_latest", "test_latest_BtoA"):  # three pictures, each shown and linked
        assert page.count(f"./results/F2_s0/{folder}/images/fake_B/") == 2 * 3
