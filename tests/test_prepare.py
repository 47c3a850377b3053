"""Downloading, unpacking and preparing data sets, on archives and trees made here; no network."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.aligned_pairs import join_pairs, split_pairs
from datasets.conversion import Conversion, ImageSource, convert_all
from datasets.prepare_afhq import prepare_afhq
from datasets.prepare_cityscapes import main as prepare_cityscapes_main
from datasets.prepare_cityscapes import prepare_cityscapes
from datasets.unpack_dataset import unpack
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("trainA", "trainB", "testA", "testB")
PNG = b"not looked into when unpacking"


def picture(path: Path, size: tuple[int, int] = (8, 8), colour=(10, 20, 30), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


def zipped(folder: Path, path: Path) -> Path:
    """What `folder` holds, as an archive; member names begin with the folder's own."""
    return archive(
        path,
        {file.relative_to(folder.parent).as_posix(): file.read_bytes() for file in folder.rglob("*.*")},
    )


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def horses(path: Path) -> Path:
    return archive(path, {f"horse2zebra/{folder}/{n}.jpg": PNG for folder in FOLDERS for n in range(3)})


# ---- unpacking ----


def test_an_archive_becomes_a_data_set(tmp_path):
    unpack(horses(tmp_path / "h.zip"), tmp_path / "horse2zebra")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h.zip", "horse2zebra"]
    assert sorted(path.name for path in (tmp_path / "horse2zebra").iterdir()) == sorted(FOLDERS)
    assert (tmp_path / "horse2zebra/trainA/0.jpg").read_bytes() == PNG


def test_an_archive_without_a_folder_around_it_will_do(tmp_path):
    unpack(archive(tmp_path / "h.zip", {f"{folder}/0.jpg": PNG for folder in FOLDERS}), tmp_path / "out")
    assert (tmp_path / "out/testB/0.jpg").is_file()


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "/evil.jpg", "horse2zebra/../../evil.jpg", "..\\evil.jpg", "C:/evil.jpg"]
)
def test_a_member_that_would_land_outside_is_refused(tmp_path, name):
    hostile = archive(tmp_path / "h.zip", {f"h/{folder}/0.jpg": PNG for folder in FOLDERS} | {name: b"x"})
    with pytest.raises(UserError, match="outside the data set"):
        unpack(hostile, tmp_path / "deep/down/out")
    assert [path.name for path in tmp_path.iterdir()] == ["h.zip"]


def test_a_symbolic_link_in_an_archive_is_refused(tmp_path):
    link = zipfile.ZipInfo("h/trainA/link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "h.zip", "w") as opened:
        opened.writestr(link, "/etc")
    with pytest.raises(UserError, match="symbolic link"):
        unpack(tmp_path / "h.zip", tmp_path / "out")


def test_a_damaged_archive_is_refused_before_anything_is_written(tmp_path):
    with zipfile.ZipFile(tmp_path / "h.zip", "w", zipfile.ZIP_STORED) as opened:
        opened.writestr("trainA/0.jpg", PNG * 10)
    data = (tmp_path / "h.zip").read_bytes()
    (tmp_path / "bad.zip").write_bytes(data.replace(PNG[:8], PNG[:8].upper(), 1))
    (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
    (tmp_path / "page.zip").write_bytes(b"<html>404</html>")
    for name, message in (
        ("bad", "damaged at trainA/0.jpg"),
        ("cut", "not a whole zip"),
        ("page", "not a whole zip"),
    ):
        with pytest.raises(UserError, match=message):
            unpack(tmp_path / f"{name}.zip", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_missing_or_empty_folder_leaves_nothing_behind(tmp_path):
    archive(tmp_path / "h.zip", {"h/trainA/0.jpg": PNG, "h/trainB/0.jpg": PNG})
    with pytest.raises(UserError, match=r"lacks .*testB \(folders found: h/trainA, h/trainB\)"):
        unpack(tmp_path / "h.zip", tmp_path / "out")
    archive(tmp_path / "e.zip", {f"h/{folder}/0.jpg": PNG for folder in FOLDERS[:3]} | {"h/testB/": b""})
    with pytest.raises(UserError, match="testB is empty"):
        unpack(tmp_path / "e.zip", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.zip", "h.zip"]
    unpack(tmp_path / "h.zip", tmp_path / "out", ("trainA", "trainB"))  # a set that has no test images
    with pytest.raises(UserError, match="exists already"):
        unpack(tmp_path / "h.zip", tmp_path / "out", ("trainA", "trainB"))


# ---- the download script ----


@pytest.fixture
def project(tmp_path):
    """A project whose datasets/ holds nothing but the scripts, in a path with a space."""
    project = tmp_path / "a project"
    (project / "datasets").mkdir(parents=True)
    for script in ("download_qsattn_dataset.sh", "unpack_dataset.py", "prepare_afhq.py"):
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
    source = horses(tmp_path / "source.zip")
    done = download(project, "horse2zebra", url=source)
    assert done.returncode == 0, done.stderr
    assert f"ready: {project}/datasets/horse2zebra" in done.stdout
    assert leftovers(project) == ["horse2zebra"]
    again = download(project, "horse2zebra", url=source)
    assert again.returncode == 2 and "exists already" in again.stderr


@needs_curl
def test_an_interrupted_download_goes_on(project, tmp_path):
    source = horses(tmp_path / "source.zip")
    (project / "datasets/.horse2zebra.zip.part").write_bytes(source.read_bytes()[:100])
    assert download(project, "horse2zebra", url=source).returncode == 0
    assert leftovers(project) == ["horse2zebra"]


@needs_curl
def test_a_download_without_ranges_begins_again(project, tmp_path, server):
    horses(tmp_path / "served/h.zip")
    (project / "datasets/.horse2zebra.zip.part").write_bytes(b"half")
    done = download(project, "horse2zebra", url=f"{server}/h.zip")  # this server knows no ranges
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("wget") is None, reason="wget is not installed")
def test_download_by_wget(project, tmp_path, server):
    horses(tmp_path / "served/h.zip")
    tools = tmp_path / "tools"  # all the script may use, without curl
    tools.mkdir()
    for tool in ("bash", "dirname", "grep", "mv", "rm", "sh", "wget", "cat"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = download(project, "horse2zebra", url=f"{server}/h.zip", PATH=str(tools))
    assert done.returncode == 0, done.stderr
    missing = download(project, "maps", url=f"{server}/no.zip", PATH=str(tools))
    assert missing.returncode == 2 and "failed (status 8)" in missing.stderr
    assert leftovers(project) == ["horse2zebra"]


@needs_curl
def test_a_useless_archive_is_refused_and_removed(project, tmp_path):
    cut = tmp_path / "cut.zip"
    cut.write_bytes(horses(tmp_path / "source.zip").read_bytes()[:200])
    hostile = archive(tmp_path / "hostile.zip", {"../evil.jpg": b"x"})
    for source, message in ((cut, "not a whole zip"), (hostile, "outside"), (tmp_path / "no.zip", "failed")):
        done = download(project, "horse2zebra", url=source)
        assert done.returncode == 2 and message in done.stderr
        assert leftovers(project) == []


def test_names(project):
    for arguments in ((), ("",), ("zebra2horse",), ("horse2zebra", "maps")):
        done = download(project, *arguments)
        assert done.returncode == 2 and "summer2winter_yosemite" in done.stderr
    assert "no data set zebra2horse" in download(project, "zebra2horse").stderr
    assert download(project, "--help").returncode == 0
    cityscapes = download(project, "cityscapes")
    assert cityscapes.returncode == 2 and "prepare_cityscapes.py" in cityscapes.stdout
    assert leftovers(project) == []


@needs_curl
def test_cat2dog(project, tmp_path):
    for phase in ("train", "val"):
        for animal in ("cat", "dog", "wild"):
            picture(tmp_path / f"afhq/{phase}/{animal}/0.jpg", (300, 300))
    done = download(project, "cat2dog", url=zipped(tmp_path / "afhq", tmp_path / "afhq.zip"))
    assert done.returncode == 0, done.stderr
    assert leftovers(project) == ["cat2dog"]
    made = sorted(
        path.relative_to(project / "datasets/cat2dog").as_posix() for path in project.rglob("*.png")
    )
    assert made == [f"{folder}/0.png" for folder in sorted(FOLDERS)]


@pytest.fixture
def server(tmp_path):
    """The address of a plain HTTP server of tmp_path/served."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# ---- conversion ----


def test_conversion_goes_on_where_it_stopped(tmp_path):
    made = []

    def make(number: int) -> Image.Image:
        made.append(number)
        if number == 2 and made.count(2) == 1:
            raise UserError("image 2 is broken")
        return Image.new("RGB", (4, 4))

    wanted = [Conversion(tmp_path / f"{n}.png", functools.partial(make, n), (4, 4)) for n in range(5)]
    with pytest.raises(UserError, match="image 2 is broken"):
        convert_all(wanted, "test", workers=1)
    whole = {int(path.stem) for path in tmp_path.glob("*.png")}
    assert {0, 1} <= whole and 2 not in whole
    made.clear()
    made.append(2)
    assert convert_all(wanted, "test", workers=1) == 5 - len(whole)
    assert sorted(made[1:]) == sorted(set(range(5)) - whole)
    assert convert_all(wanted, "test") == 0
    Image.new("RGB", (2, 2)).save(tmp_path / "3.png")  # of an earlier run with another size
    assert convert_all(wanted, "test") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}.png" for n in range(5)]


def test_a_source_is_a_folder_or_an_archive(tmp_path):
    picture(tmp_path / "set/a.png", mode="RGBA", colour=(1, 2, 3, 255))
    (tmp_path / "set/b.JPG").write_bytes(b"broken")
    (tmp_path / "set/.hidden.png").write_bytes(b"")
    (tmp_path / "set/notes.txt").write_text("")
    zipped(tmp_path / "set", tmp_path / "set.zip")
    for source, prefix in ((ImageSource(tmp_path / "set"), ""), (ImageSource(tmp_path / "set.zip"), "set/")):
        assert source.images() == [f"{prefix}a.png", f"{prefix}b.JPG"]
        assert source.read(f"{prefix}a.png").getpixel((0, 0)) == (1, 2, 3)
        with pytest.raises(UserError, match="b.JPG is no usable image"):
            source.read(f"{prefix}b.JPG")
    with pytest.raises(UserError, match="does not exist"):
        ImageSource(tmp_path / "no")
    with pytest.raises(UserError, match="neither a folder nor a whole zip"):
        ImageSource(tmp_path / "set/b.JPG")


# ---- Cityscapes ----


@pytest.fixture
def cityscapes(tmp_path):
    """The official layout, one image of 64 x 32 per city; the label map is red on its left half, blue on its right."""
    label = Image.new("RGBA", (64, 32), (255, 0, 0, 255))
    label.paste((0, 0, 255, 255), (33, 0, 64, 32))  # an edge that no interpolation could keep
    for phase, city in (("train", "aachen"), ("train", "bonn"), ("val", "lindau")):
        stem = f"{city}_000000_000019"
        picture(tmp_path / f"leftImg8bit/{phase}/{city}/{stem}_leftImg8bit.png", (64, 32), (50, 100, 150))
        labels = tmp_path / f"gtFine/{phase}/{city}"
        labels.mkdir(parents=True)
        label.save(labels / f"{stem}_gtFine_color.png")
        picture(labels / f"{stem}_gtFine_labelIds.png", (64, 32), 3, "L")
    picture(tmp_path / "leftImg8bit/test/berlin/berlin_0_leftImg8bit.png")
    return tmp_path


@pytest.mark.parametrize("as_archive", [False, True])
def test_cityscapes(cityscapes, as_archive):
    photos, labels = cityscapes / "leftImg8bit", cityscapes / "gtFine"
    if as_archive:
        photos, labels = zipped(photos, cityscapes / "photos.zip"), zipped(labels, cityscapes / "labels.zip")
    out = cityscapes / "out"
    assert prepare_cityscapes(photos, labels, out, size=16) == 6
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    train = ["aachen_000000_000019.png", "bonn_000000_000019.png"]
    assert made == [f"train{side}/{name}" for side in "AB" for name in train] + [
        f"val{side}/lindau_000000_000019.png" for side in "AB"
    ]
    photo, label = (pixels(out / f"valA/{made[-1][5:]}"), pixels(out / made[-1]))
    assert photo.shape == label.shape == (16, 16, 3)
    assert (photo == (50, 100, 150)).all()
    assert {tuple(colour) for colour in label.reshape(-1, 3)} == {(255, 0, 0), (0, 0, 255)}
    assert prepare_cityscapes(photos, labels, out, size=16) == 0


def test_cityscapes_that_is_not_whole(cityscapes, capsys):
    photos, labels, out = cityscapes / "leftImg8bit", cityscapes / "gtFine", cityscapes / "out"
    with pytest.raises(UserError, match="holds no leftImg8bit/train/CITY"):
        prepare_cityscapes(labels, labels, out)
    next((labels / "train/bonn").glob("*_color.png")).unlink()
    with pytest.raises(UserError, match=r"1 images have no label map \(train/bonn_000000_000019\)"):
        prepare_cityscapes(photos, labels, out)
    shutil.rmtree(labels / "val")
    status = prepare_cityscapes_main(
        ["--leftImg8bit", str(photos), "--gtFine", str(labels), "--out", str(out)]
    )
    assert status == 2 and "error: " in capsys.readouterr().err
    assert not out.exists()


# ---- AFHQ ----


@pytest.mark.parametrize("test_phase", ["val", "test"])
def test_afhq(tmp_path, test_phase):
    for phase in ("train", test_phase):
        picture(tmp_path / f"afhq/{phase}/cat/c.jpg", (32, 32), (200, 0, 0))
        picture(tmp_path / f"afhq/{phase}/dog/d.png", (32, 32), (0, 200, 0))
        picture(tmp_path / f"afhq/{phase}/wild/w.jpg", (32, 32))
    for source in (tmp_path / "afhq", zipped(tmp_path / "afhq", tmp_path / "afhq.zip")):
        out = tmp_path / f"from_{source.name}"
        assert prepare_afhq(source, out, size=16) == 4
        assert (pixels(out / "testB/d.png") == (0, 200, 0)).all()
        assert pixels(out / "trainA/c.png").shape == (16, 16, 3)
    picture(tmp_path / "afhq/train/cat/c.png")
    with pytest.raises(UserError, match="two images would become .*c.png"):
        prepare_afhq(tmp_path / "afhq", tmp_path / "out")
    shutil.rmtree(tmp_path / f"afhq/{test_phase}/dog")
    with pytest.raises(UserError, match="no images for testB"):
        prepare_afhq(tmp_path / "afhq", tmp_path / "out")


# ---- aligned pairs ----


def test_split_and_join_undo_each_other(tmp_path):
    pair = np.random.default_rng(0).integers(0, 256, (6, 16, 3), dtype=np.uint8)
    (tmp_path / "pairs/train/deep").mkdir(parents=True)
    Image.fromarray(pair).save(tmp_path / "pairs/train/deep/1.png")
    assert split_pairs(tmp_path / "pairs", tmp_path / "folders") == 2
    assert (pixels(tmp_path / "folders/trainA/deep/1.png") == pair[:, :8]).all()
    assert (pixels(tmp_path / "folders/trainB/deep/1.png") == pair[:, 8:]).all()
    assert join_pairs(tmp_path / "folders", tmp_path / "again") == 1
    assert (pixels(tmp_path / "again/train/deep/1.png") == pair).all()


def test_pairs_that_are_none(tmp_path):
    picture(tmp_path / "odd/train/1.png", (7, 4))
    with pytest.raises(UserError, match="7 pixels wide"):
        split_pairs(tmp_path / "odd", tmp_path / "out")
    picture(tmp_path / "uneven/trainA/1.jpg", (4, 4))
    picture(tmp_path / "uneven/trainB/1.png", (8, 4))
    with pytest.raises(UserError, match="4 x 4 in A and 8 x 4 in B"):
        join_pairs(tmp_path / "uneven", tmp_path / "out")
    picture(tmp_path / "uneven/trainA/2.png")
    with pytest.raises(UserError, match="1 images of trainA and trainB have no partner .*such as 2"):
        join_pairs(tmp_path / "uneven", tmp_path / "out")
    for convert in (split_pairs, join_pairs):
        with pytest.raises(UserError, match="holds no images"):
            convert(tmp_path / "none", tmp_path / "out")
