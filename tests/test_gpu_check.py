"""The GPU check: seconds that suffice for each section, lack of time."""

from __future__ import annotations

import json
import os
import sys
import weakref
from argparse import Namespace

import pytest
from test_acceleration import batches, tiny_model

from models.textbook import TextbookStep
from scripts.gpu import agreement, check
from scripts.gpu.agreement import SEPARATE_STEPS, STEPS, VARIANTS
from scripts.gpu.sections import LADDER, TEXTBOOK

# On an H200 by docs/performance.md: milliseconds of a step, in their order the first that fits a row's name.
MS = {
    "textbook": 60,
    "fast, batch 4": 17,
    "fast": 7,
    "bf16, channels last": 52,
    "bf16, graph": 19,
    "bf16": 37,
    "tf32": 28,
    "float32": 51,
}
IMPORTS, BUILD, SEARCH, COMPILING = 8, 1.5, 2, 20  # seconds; a search for algorithms or a capture


def seconds_for_run(name: str, words: str, steps: int) -> float:
    ms = next(ms for start, ms in MS.items() if name.startswith(start))
    starts = BUILD + SEARCH * any(word in name + words for word in ("searched", "fast", "graph"))
    return starts + steps * ms / 1e3


def test_the_sections_fit_into_one_call_on_a_lent_machine():
    assert sum(check.SECTIONS.values()) <= 590  # of 600 s, with the start of check.py


def test_the_ladder_has_time_for_its_rows():
    rows = [seconds_for_run(name, words, 61) for name, words in {**TEXTBOOK, **LADDER}.items()]
    # A row begins only while there are 20 s.
    assert IMPORTS + COMPILING + sum(rows[:-1]) + max(rows[-1], 20) <= check.SECTIONS["ladder"]


def test_agreement_has_time_for_its_runs():
    textbook = STEPS * MS["textbook"] / 1e3  # beside each run
    together = sum(textbook + seconds_for_run(name, words, STEPS) for name, words in VARIANTS.items())
    separate = {"textbook": "", "textbook, nudged": ""} | VARIANTS
    apart = sum(seconds_for_run(name, words, SEPARATE_STEPS) for name, words in separate.items())
    assert IMPORTS + together + apart <= check.SECTIONS["agreement"]


def test_a_step_can_be_captured_beside_the_TextbookStep(monkeypatch):
    """Autograd would accumulate gradients on the stream that a loss still alive was computed on."""
    model, histories = tiny_model(), []

    def noting(model):
        plain = TextbookStep(model)
        step = plain.optimize_parameters

        def noted():
            step()
            histories.extend(map(weakref.ref, plain.losses.values()))

        plain.optimize_parameters = noted
        return plain

    def run(step):
        assert histories and not any(loss() is not None for loss in histories)
        step()

    monkeypatch.setattr(agreement, "TextbookStep", noting)
    monkeypatch.setattr(model.accelerator, "run", run)
    bench = Namespace(side=lambda words: Namespace(model=model))
    off = agreement._differences_from_the_same_weights(bench, "", batches(2), 2)
    assert len(histories) == 2 * len(model.loss_names) and off.max() < 1e-4
    model.opt.cuda_graph = True
    with pytest.raises(SystemExit, match="the step was not captured"):
        agreement._differences_from_the_same_weights(bench, "", batches(1), 1)


def test_each_section_has_the_time_kept_for_it_and_what_earlier_ones_left():
    names = list(check.SECTIONS)
    left = sum(check.SECTIONS.values())
    for number, name in enumerate(names):
        seconds = check.seconds_for(names[number:], left)
        assert seconds >= check.SECTIONS[name] - 1e-9
        left -= (
            check.SECTIONS[name] / 2 if number == 0 else seconds
        )  # the first one needs half, the others all
    assert left == pytest.approx(0)


def test_with_too_little_time_each_section_gets_a_share():
    names = list(check.SECTIONS)
    shares = [check.seconds_for(names, 93.0)]
    assert shares[0] == pytest.approx(93.0 * check.SECTIONS[names[0]] / sum(check.SECTIONS.values()))


@pytest.mark.parametrize("status, exit_status", [("incomplete", 0), ("left out", 0), ("failed", 1)])
def test_lack_of_time_is_reported_and_is_no_failure(monkeypatch, tmp_path, capsys, status, exit_status):
    def section(name, arguments, folder, seconds):
        found = {"seconds": 1, "markdown": "", "data": {}}
        return {**found, "status": status if name == "choices" else "done"}

    monkeypatch.setattr(check, "run_section", section)
    monkeypatch.setattr(sys, "argv", ["check.py", "", str(tmp_path), "--sections", "environment,choices"])
    assert check.main() == exit_status
    said = capsys.readouterr().out
    assert ("for lack of time: choices" in said) == (exit_status == 0)
    assert json.loads((tmp_path / "report.json").read_text())["choices"]["status"] == status


def test_a_section_out_of_time_ends_with_all_its_processes():
    assert check.run_for(60, ["sh", "-c", "exit 3"]) == 3
    reader, writer = os.pipe()
    assert check.run_for(0.5, ["sh", "-c", "sleep 1000 & wait"], stdout=writer) is None
    os.close(writer)
    assert os.read(reader, 1) == b""  # the end of the pipe, once no process has it open
    os.close(reader)
