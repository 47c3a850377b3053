"""Downloading, unpacking and preparing data sets, from small archives and folders in the official layouts."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.prepare import main

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("trainA", "trainB", "testA", "testB")
DATA = b"not looked into when unpacking"


def picture(path: Path, size: tuple[int, int] = (8, 8), colour=(10, 20, 30), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


def zipped(folder: Path, path: Path) -> Path:
    """What `folder` holds, as an archive; member names begin with the folder's own."""
    inside = [file for file in folder.rglob("*.*")]
    return archive(path, {file.relative_to(folder.parent).as_posix(): file.read_bytes() for file in inside})


def prepare(command: str, *sources: Path, out: Path) -> int:
    size = ["--size", "16"] if command in ("afhq", "cityscapes") else []
    return main([command, *map(str, sources), "--out", str(out), *size])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


# ---- unpacking ----


def horses(path: Path) -> Path:
    return archive(path, {f"horse2zebra/{folder}/{n}.jpg": DATA for folder in FOLDERS for n in range(3)})


def night2day(path: Path, *extra: tarfile.TarInfo) -> Path:
    """Pairs in the layout of pix2pix, and more members."""
    with tarfile.open(path, "w:gz") as opened:
        for phase in ("train", "val", "test"):
            member = tarfile.TarInfo(f"night2day/{phase}/0.jpg")
            member.size = len(DATA)
            opened.addfile(member, io.BytesIO(DATA))
        for member in extra:
            opened.addfile(member)
    return path


@pytest.mark.parametrize("root", ["", "horse2zebra/"])
def test_an_archive_becomes_a_data_set_and_writes_nothing_outside(tmp_path, capsys, root):
    names = [f"{root}{name}/_0.jpg" for name in FOLDERS] + ["../../../e.jpg", "/e.jpg"]
    made, out = archive(tmp_path / "h.zip", dict.fromkeys(names, DATA)), tmp_path / "out"
    assert prepare("unpack", made, out=out) == 0
    assert not Path("/e.jpg").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h.zip", "out"]
    assert {path.name for path in out.iterdir()} >= set(FOLDERS)
    assert (out / "trainA/_0.jpg").read_bytes() == DATA
    assert prepare("unpack", made, out=out) == 2 and "exists already" in capsys.readouterr().err


def test_what_cannot_be_unpacked_is_one_line_and_leaves_nothing(tmp_path, capsys):
    (made := tmp_path / "made").mkdir()
    with zipfile.ZipFile(made / "stored.zip", "w", zipfile.ZIP_STORED) as opened:
        opened.writestr("trainA/0.jpg", DATA * 10)
    stored, tar = (made / "stored.zip").read_bytes(), night2day(made / "made.tar.gz").read_bytes()
    link, up = tarfile.TarInfo("night2day/train/link"), tarfile.TarInfo("../e")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    for content, message in (
        (stored.replace(DATA[:8], DATA[:8].upper(), 1), "not a whole zip or tar archive (Bad CRC"),
        (stored[: len(stored) // 2], "not a whole zip or tar archive"),
        (stored, "lacks some of the folders"),
        (tar[: len(tar) // 2], "not a whole zip or tar archive"),
        (night2day(made / "l.tar.gz", link).read_bytes(), "train/link is a link, or outside the"),
        (night2day(made / "u.tar.gz", up).read_bytes(), "../e is a link, or outside the"),
    ):
        (tmp_path / "archive").write_bytes(content)
        assert prepare("unpack", tmp_path / "archive", out=tmp_path / "deep/out") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error
        assert not list(tmp_path.glob("deep/*")) and not list(tmp_path.glob("e*"))


# ---- images ----


@pytest.mark.parametrize("as_archive", [False, True])
def test_cityscapes(tmp_path, capsys, as_archive):
    """Label maps are red on the left, blue on the right, at an edge that no interpolation could keep."""
    label = Image.new("RGBA", (64, 32), (255, 0, 0, 255))
    label.paste((0, 0, 255, 255), (33, 0, 64, 32))
    for phase, city in (("train", "aachen"), ("train", "bonn"), ("val", "lindau")):
        picture(tmp_path / f"leftImg8bit/{phase}/{city}/{city}_leftImg8bit.png", (64, 32), (50, 100, 150))
        picture(tmp_path / f"gtFine/{phase}/{city}/{city}_gtFine_labelIds.png", (64, 32), 3, "L")
        label.save(tmp_path / f"gtFine/{phase}/{city}/{city}_gtFine_color.png")
    picture(tmp_path / "leftImg8bit/test/berlin/berlin_leftImg8bit.png")
    photos, labels, out = tmp_path / "leftImg8bit", tmp_path / "gtFine", tmp_path / "sets/out"
    if as_archive:
        photos, labels = zipped(photos, tmp_path / "photos.zip"), zipped(labels, tmp_path / "labels.zip")
    assert prepare("cityscapes", photos, labels, out=out) == 0
    train = [f"train{side}/{city}.png" for side in "AB" for city in ("aachen", "bonn")]
    assert files(out.parent) == [f"out/{name}" for name in [*train, "valA/lindau.png", "valB/lindau.png"]]
    assert (pixels(out / "valA/lindau.png") == (50, 100, 150)).all()
    colours = pixels(out / "valB/lindau.png").reshape(16 * 16, 3)
    assert {tuple(colour) for colour in colours} == {(255, 0, 0), (0, 0, 255)}
    (tmp_path / "gtFine/val/lindau/lindau_gtFine_color.png").unlink()
    assert prepare("cityscapes", photos, tmp_path / "gtFine", out=tmp_path / "no") == 2
    assert "['val/lindau']" in capsys.readouterr().err


@pytest.mark.parametrize("test_phase", ["val", "test"])
def test_afhq(tmp_path, capsys, test_phase):
    for phase in ("train", test_phase):
        picture(tmp_path / f"afhq/{phase}/cat/c.jpg", (32, 32), (200, 0, 0))
        picture(tmp_path / f"afhq/{phase}/dog/d.png", (32, 32), (0, 200, 0))
        picture(tmp_path / f"afhq/{phase}/wild/w.jpg", (32, 32))
    for source in (tmp_path / "afhq", zipped(tmp_path / "afhq", tmp_path / "afhq.zip")):
        out = tmp_path / f"from_{source.name}"
        assert prepare("afhq", source, out=out) == 0
        assert files(out) == ["testA/c.png", "testB/d.png", "trainA/c.png", "trainB/d.png"]
        assert (pixels(out / "testB/d.png") == (0, 200, 0)).all()
        assert pixels(out / "trainA/c.png").shape == (16, 16, 3)
    (out / "testB/d.png").write_bytes(b"kept")
    (out / "trainA/c.png").unlink()
    assert prepare("afhq", tmp_path / "afhq", out=out) == 0  # makes what is missing
    assert (out / "testB/d.png").read_bytes() == b"kept" and (out / "trainA/c.png").is_file()
    (tmp_path / "afhq/train/dog/d.png").write_bytes(b"broken")
    assert prepare("afhq", tmp_path / "afhq", out=tmp_path / "no") == 2
    assert "d.png': it is not an image" in capsys.readouterr().err and not list(tmp_path.glob("no/trainB/*"))
    picture(tmp_path / "afhq/train/cat/c.png")
    assert prepare("afhq", tmp_path / "afhq", out=tmp_path / "out") == 2
    assert "two images of" in capsys.readouterr().err


def test_pairs_of_one_name_are_joined(tmp_path, capsys):
    halves = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    for side, ending, pixels_of_side in (("A", "png", halves[0]), ("B", "bmp", halves[1])):
        (tmp_path / f"train{side}/deep").mkdir(parents=True)
        Image.fromarray(pixels_of_side).save(tmp_path / f"train{side}/deep/1.{ending}")
    assert prepare("join", tmp_path, out=tmp_path / "pairs") == 0
    assert (pixels(tmp_path / "pairs/train/deep/1.png") == np.concatenate(halves, axis=1)).all()
    picture(tmp_path / "testA/1.jpg", (4, 4))
    picture(tmp_path / "testB/1.png", (8, 4))
    assert prepare("join", tmp_path, out=tmp_path / "pairs") == 2
    assert "4 x 4 in A and 8 x 4 in B" in capsys.readouterr().err


def test_no_picture_is_lost_or_changed_in_silence_by_joining(tmp_path, capsys):
    for side in "AB":
        picture(tmp_path / f"train{side}/_DSC0001.png", mode="I;16", colour=2000)
        Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / f"train{side}/_DSC0002.tif")
        (tmp_path / f"train{side}/_DSC0003.psd").write_bytes(b"")
    assert prepare("join", tmp_path, out=tmp_path / "pairs") == 0
    assert (pixels(tmp_path / "pairs/train/_DSC0001.png") == round(2000 * 255 / 4095)).all()
    said = capsys.readouterr().err
    assert said.count("4095 as white") == 2 and said.count("left out") == 2 and "1 of '.psd'" in said
    for name, lacking in (
        ("_DSC0004", "1 images of trainA and trainB have no partner"),
        ("_DSC0002", "two images"),
    ):
        picture(tmp_path / f"trainA/{name}.jpg")
        assert prepare("join", tmp_path, out=tmp_path / "pairs") == 2
        assert lacking in capsys.readouterr().err


# ---- the download script ----


@pytest.fixture
def project(tmp_path):
    """A project whose datasets/ holds nothing but the scripts, in a path with a space."""
    project = tmp_path / "a project"
    (project / "datasets").mkdir(parents=True)
    for script in ("download_qsattn_dataset.sh", "prepare.py"):
        (project / "datasets" / script).symlink_to(ROOT / "datasets" / script)
    (project / ".venv/bin").mkdir(parents=True)
    python = project / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return project


def download(project: Path, *names: str, url: Path | str = "") -> subprocess.CompletedProcess:
    env = os.environ | {"QSATTN_DATASET_URL": url.as_uri() if isinstance(url, Path) else url}
    script = project / "datasets/download_qsattn_dataset.sh"
    return subprocess.run(
        ["bash", script, *names], cwd="/", env=env, capture_output=True, text=True, timeout=60
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
    done = download(project, "day2night", url=night2day(tmp_path / "night2day.tar.gz"))
    assert done.returncode == 0 and "--dataset_mode aligned --direction BtoA" in done.stdout


@needs_curl
def test_an_interrupted_download_goes_on_or_begins_again(project, server):
    folder, address = server  # which knows no ranges
    source = horses(folder / "h.zip")
    (project / "datasets/.horse2zebra.zip.part").write_bytes(source.read_bytes()[:100])
    assert download(project, "horse2zebra", url=source).returncode == 0
    (project / "datasets/.maps.zip.part").write_bytes(b"half")
    done = download(project, "maps", url=f"{address}/h.zip")
    assert done.returncode == 0, done.stderr
    assert leftovers(project) == ["horse2zebra", "maps"]
