"""The GPU check's time: every section has some, and lack of time is reported and is no failure."""

from __future__ import annotations

import json
import sys

import pytest

from scripts.gpu import check


def test_the_sections_fit_into_eight_minutes():
    assert sum(check.SECTIONS.values()) < 480


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
