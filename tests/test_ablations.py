"""Each command of the supplement's ablations parses, and means what its name says."""

from __future__ import annotations

import shlex

import pytest

from options.test_options import TestOptions
from options.train_options import TrainOptions
from scripts import ablations

EXPECTED = {
    "queries": [("qs", n) for n in (64, 128, 256, 512)] + [("cut", n) for n in (64, 128, 256, 512)],
    "layers": [([12, 16], 0), ([0, 4, 8, 12, 16], 64)],
    "modes": ["global", "local", "local_global"],
    "window": [(mode, side) for mode in ("local", "local_global") for side in (3, 5, 7, 9, 11)],
}
SEEN = {
    "queries": lambda opt: (opt.model, opt.num_patches),
    "layers": lambda opt: (opt.qs_layers, opt.qs_pool),
    "modes": lambda opt: opt.QS_mode,
    "window": lambda opt: (opt.QS_mode, opt.qs_window),
}


@pytest.mark.parametrize("ablation", EXPECTED)
def test_printed_commands_parse(ablation, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ablations.main([ablation, "--print", "--", "--dataroot", "./my data", "--ngf", "8"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    trains, tests = (
        [line[2:] for line in lines if line[:2] == ["python", script]] for script in ("train.py", "test.py")
    )
    assert len(trains) == len(tests) == len(lines) / 2
    opts = [TrainOptions().parse(line) for line in trains]
    assert [SEEN[ablation](opt) for opt in opts] == EXPECTED[ablation]
    assert {(opt.dataroot, opt.ngf) for opt in opts} == {("./my data", 8)}
    assert [TestOptions().parse(line).name for line in tests] == [opt.name for opt in opts]
    assert len({opt.name for opt in opts}) == len(opts) and not list(tmp_path.iterdir())


def test_one_setting_goes_on_where_it_stopped(capsys, tmp_path):
    run = tmp_path / "horse2zebra_layers_last_two"
    run.mkdir()
    (run / "latest_state.pth").touch()
    assert (
        ablations.main(["layers", "--only", "last_two", "--print", "--", "--checkpoints_dir", str(tmp_path)])
        == 0
    )
    train, test = capsys.readouterr().out.splitlines()
    assert train.endswith("--continue_train") and "--qs_layers 12,16" in train and "test.py" in test


def test_refusals(capsys):
    assert ablations.main(["layers", "--only", "all"]) == 2
    assert "there are last_two, all_five" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        ablations.main(["queries", "--print", "--", "--n_epoch", "3"])
    assert exit.value.code == 2 and "did you mean --n_epochs?" in capsys.readouterr().err
