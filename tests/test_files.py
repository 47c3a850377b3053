"""Atomic writes: the old file or the new one, under any name, and equal contents in equal files."""

from pathlib import Path

import pytest
import torch

from util.files import remove_leftovers, write_atomically


def test_equal_weights_give_equal_files_under_any_name(tmp_path):
    weights = {"layer.weight": torch.arange(12.0).view(3, 4), "layer.bias": torch.ones(3)}
    names = "latest_net_G.pth", "5_net_G.pth", "n" * 255  # as long as a file system takes
    for name in names:
        write_atomically(tmp_path / name, lambda path: torch.save(weights, path))
    assert len({(tmp_path / name).read_bytes() for name in names}) == 1 and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "error, message",
    [
        (RuntimeError("PytorchStreamWriter failed\nstack"), "f could not be written, with .* MB free"),
        (OSError("no space"), "no space"),
    ],
)
def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error, message):
    def fail(path: Path) -> None:
        path.write_text("half")
        raise error

    (tmp_path / "f").write_text("old")
    with pytest.raises(OSError, match=message):
        write_atomically(tmp_path / "f", fail)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "old")]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".x1y2.tmp").mkdir()
    (tmp_path / ".x1y2.tmp" / "archive").write_text("half")
    (tmp_path / "kept.tmp").write_text("")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.tmp"]
