"""Each ablation trains what its name says; its page has our numbers beside the published ones."""

from __future__ import annotations

import json
import shlex

import pytest

from datasets.make_stripes import make_stripes
from options.train_options import TrainOptions
from scripts import ablations

EXPECTED = {
    "queries": [("qs", n) for n in (64, 128, 256, 512)] + [("cut", n) for n in (64, 128, 256, 512)],
    "layers": [([12, 16], 0), ([0, 4, 8, 12, 16], 64)],
    "modes": ["global", "local", "local_global"],
    "window": [(mode, side) for mode in ("local", "local_global") for side in (3, 5, 7, 9, 11)],
    "fusion": [("asgit", f"F{stage}") for stage in range(5)],
}
SEEN = {
    "queries": lambda opt: (opt.model, opt.num_patches),
    "layers": lambda opt: (opt.qs_layers, opt.qs_pool),
    "modes": lambda opt: opt.QS_mode,
    "window": lambda opt: (opt.QS_mode, opt.qs_window),
    "fusion": lambda opt: (opt.model, opt.attention_stage),
}


@pytest.mark.parametrize("ablation", EXPECTED)
def test_printed_trainings_parse(ablation, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [ablation, "--print", "--gpu_ids", "-1", "--dataroot", "./my data", "--", "--ngf", "8"]
    assert ablations.main(argv) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    opts = [TrainOptions().parse([*line[2:], "--gpu_ids=-1"]) for line in lines]
    assert [SEEN[ablation](opt) for opt in opts] == EXPECTED[ablation]
    assert {(opt.dataroot, opt.ngf) for opt in opts} == {("./my data", 8)}
    published = ablations.ABLATIONS[ablation].get("published", {}).values()
    assert all(set(numbers) <= set(ablations.ABLATIONS[ablation]["settings"]) for numbers in published)


def test_the_published_numbers_shown_are_those_of_the_setting_and_the_data(monkeypatch):
    studies = []
    monkeypatch.setattr(ablations, "run_study", lambda study: studies.append(study) or 0)
    for data in ("horse2zebra", "cat2dog", "mine"):
        argv = ["layers", "--only", "all_five", "--gpu_ids", "-1", "--dataroot", f"./datasets/{data}"]
        assert ablations.main(argv) == 0
    shown = [study.published["numbers"] for study in studies]
    assert shown[:2] == [{"all_five": {"FID": 40.4, "SWD": 32.5}}, {"all_five": {"FID": 73.1, "SWD": 12.6}}]
    assert shown[2] == shown[0] and "horse2zebra" in studies[2].published["source"]


def test_the_page_shows_our_numbers_beside_the_published_ones(tmp_path):
    """In both directions, each with its pictures, where an ablation asks for them."""
    data, out = tmp_path / "horse2zebra", tmp_path / "out"
    make_stripes(data, size=32, train=2, test=2)
    argv = f"fusion --only F2 --gpu_ids -1 --dataroot {data} --out {out} --n_epochs 1 --n_epochs_decay 0"
    argv += " -- --netG resnet_4blocks --ngf 2 --ndf 2 --load_size 32 --crop_size 32 --num_threads 0"
    argv += " --print_freq 1 --no_html"
    assert ablations.main(argv.split()) == 0
    results = json.loads((out / "study.json").read_text())
    (run,) = results["runs"]
    assert set(run["numbers"]) == {"SWD", "SWD BtoA", "stripes-gained", "stripes-background"}
    assert set(results["untranslated"]) == set(run["numbers"])
    page = (out / "index.html").read_text()
    assert "published: 0.0129 ± 0.0051" in page and "supplement of ASGIT, horse2zebra" in page
    for folder in ("test_latest", "test_latest_BtoA"):  # two pictures, each shown and linked
        assert page.count(f"./results/F2_s0/{folder}/images/fake_B/") == 2 * 2
