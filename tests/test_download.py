"""Downloading and unpacking data sets, from archives made here: whole or not at all."""

from __future__ import annotations

import functools
import http.server
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from archives import archive, picture, zipped

from datasets.unpack_dataset import main, unpack
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("trainA", "trainB", "testA", "testB")
DATA = b"not looked into when unpacking"


def horses(path: Path) -> Path:
    return archive(path, {f"horse2zebra/{folder}/{n}.jpg": DATA for folder in FOLDERS for n in range(3)})


# ---- unpacking ----


@pytest.mark.parametrize("root", ["", "horse2zebra/"])
def test_an_archive_becomes_a_data_set_and_writes_nothing_outside(tmp_path, root):
    names = [f"{root}{name}/_0.jpg" for name in FOLDERS] + ["../../../e.jpg", "/e.jpg"]
    unpack(archive(tmp_path / "h.zip", dict.fromkeys(names, DATA)), tmp_path / "out")
    assert not Path("/e.jpg").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h.zip", "out"]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= set(FOLDERS)
    assert (tmp_path / "out/trainA/_0.jpg").read_bytes() == DATA
    with pytest.raises(UserError, match="exists already"):
        unpack(tmp_path / "h.zip", tmp_path / "out")


def pairs(path: Path, *extra: tarfile.TarInfo) -> Path:
    """night2day in the layout of pix2pix, and more members."""
    with tarfile.open(path, "w:gz") as opened:
        for phase in ("train", "val", "test"):
            member = tarfile.TarInfo(f"night2day/{phase}/0.jpg")
            member.size = len(DATA)
            opened.addfile(member, io.BytesIO(DATA))
        for member in extra:
            opened.addfile(member)
    return path


def unusable(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Archives that are refused, and what is said."""
    with zipfile.ZipFile(folder / "stored.zip", "w", zipfile.ZIP_STORED) as opened:
        opened.writestr("trainA/0.jpg", DATA * 10)
    stored = (folder / "stored.zip").read_bytes()
    tar = pairs(folder / "made.tar.gz").read_bytes()
    link = tarfile.TarInfo("night2day/train/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    return {
        "damaged": (stored.replace(DATA[:8], DATA[:8].upper(), 1), "not a whole zip or tar archive (Bad CRC"),
        "cut": (stored[: len(stored) // 2], "not a whole zip or tar archive"),
        "a web page": (b"<html>404</html>", "not a whole zip or tar archive"),
        "folders": (stored, "lacks some of the folders"),
        "tar cut": (tar[: len(tar) // 2], "not a whole zip or tar archive"),
        "tar link": (pairs(folder / "l.tar.gz", link).read_bytes(), "link to an absolute path"),
        "tar up": (
            pairs(folder / "u.tar.gz", tarfile.TarInfo("../e")).read_bytes(),
            "outside the destination",
        ),
    }


def test_what_cannot_be_unpacked_is_one_line_and_leaves_nothing(tmp_path, capsys):
    (tmp_path / "made").mkdir()
    for what, (content, message) in unusable(tmp_path / "made").items():
        (tmp_path / "archive").write_bytes(content)
        assert main([str(tmp_path / "archive"), str(tmp_path / "deep/out")]) == 2, what
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error, what
        assert not list(tmp_path.glob("deep/*")) and not list(tmp_path.glob("e*")), what


def test_an_archive_that_needs_more_than_the_free_space_is_not_unpacked(tmp_path, capsys, monkeypatch):
    bomb = archive(tmp_path / "bomb.zip", {f"h/{folder}/0.bmp": bytes(50_000_000) for folder in FOLDERS})
    assert bomb.stat().st_size < 1e6
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 9 * 10**8, 10**8))
    assert main([str(bomb), str(tmp_path / "out")]) == 2
    assert "unpacked it has 0.2 GB, and 0.1 GB are free" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.zip"]


# ---- the download script ----


@pytest.fixture
def project(tmp_path):
    """A project whose datasets/ holds nothing but the scripts, in a path with a space."""
    project = tmp_path / "a project"
    (project / "datasets").mkdir(parents=True)
    for script in ("download_qsattn_dataset.sh", "unpack_dataset.py", "prepare.py"):
        (project / "datasets" / script).symlink_to(ROOT / "datasets" / script)
    (project / ".venv/bin").mkdir(parents=True)
    python = project / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return project


def download(
    project: Path, *names: str, url: Path | str | None = None, **env: str
) -> subprocess.CompletedProcess:
    if url is not None:
        env["QSATTN_DATASET_URL"] = url.as_uri() if isinstance(url, Path) else url
    script = project / "datasets/download_qsattn_dataset.sh"
    return subprocess.run(
        ["bash", script, *names], cwd="/", env=os.environ | env, capture_output=True, text=True, timeout=60
    )


def leftovers(project: Path) -> list[str]:
    return sorted(path.name for path in (project / "datasets").iterdir() if not path.is_symlink())


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@needs_curl
def test_download(project, tmp_path):
    """Where the first address does not answer, the second is tried."""
    url = f"http://127.0.0.1:9/h.zip {horses(tmp_path / 'source.zip').as_uri()}"
    done = download(project, "horse2zebra", url=url)
    assert done.returncode == 0, done.stderr
    assert "the download of http://127.0.0.1:9/h.zip failed" in done.stderr
    assert f"ready: {project}/datasets/horse2zebra" in done.stdout
    assert leftovers(project) == ["horse2zebra"]
    again = download(project, "horse2zebra", url=url)
    assert again.returncode == 2 and "exists already" in again.stderr


@needs_curl
def test_day2night_is_a_set_of_pairs(project, tmp_path):
    done = download(project, "day2night", url=pairs(tmp_path / "night2day.tar.gz"))
    assert done.returncode == 0, done.stderr
    assert "--dataset_mode aligned --direction BtoA" in done.stdout
    assert leftovers(project) == ["day2night"]


@needs_curl
def test_an_interrupted_download_goes_on_or_begins_again(project, tmp_path, server):
    source = horses(tmp_path / "served/h.zip")
    (project / "datasets/.horse2zebra.zip.part").write_bytes(source.read_bytes()[:100])
    assert download(project, "horse2zebra", url=source).returncode == 0
    assert leftovers(project) == ["horse2zebra"]
    (project / "datasets/.maps.zip.part").write_bytes(b"half")
    done = download(project, "maps", url=f"{server}/h.zip")  # this server knows no ranges
    assert done.returncode == 0, done.stderr


def test_names(project):
    for arguments in ((), ("",), ("zebra2horse",), ("horse2zebra", "maps"), ("horse2zebra maps",)):
        done = download(project, *arguments)
        assert done.returncode == 2 and "summer2winter_yosemite" in done.stderr
    assert "prepare.py cityscapes" in download(project, "cityscapes").stderr
    assert download(project, "--help").returncode == 0 and leftovers(project) == []


@needs_curl
def test_cat2dog(project, tmp_path):
    for phase in ("train", "val"):
        for animal in ("cat", "dog", "wild"):
            picture(tmp_path / f"afhq/{phase}/{animal}/0.jpg", (300, 300))
    done = download(project, "cat2dog", url=zipped(tmp_path / "afhq", tmp_path / "afhq.zip"))
    assert done.returncode == 0, done.stderr
    assert leftovers(project) == ["cat2dog"]
    root = project / "datasets/cat2dog"
    assert sorted(path.parent.name for path in root.rglob("*.png")) == sorted(FOLDERS)


@pytest.fixture
def server(tmp_path):
    """The address of a plain HTTP server of tmp_path/served."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
