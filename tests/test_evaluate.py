"""scripts/evaluate.py on folders, runs and sweeps: numbers, receipts, refusals."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor
from trained_run import make_run

import test as translation
from scripts import evaluate, judging
from util.image_files import open_rgb
from util.metrics.networks import DinoKeys, FeatureNetwork, dino_transform, load_lpips
from util.metrics.pairs import structure_distance
from util.weight_files import sha256

FOLDERS = "--fake fake --real set/testB --gpu_ids -1".split()
RUN = "--name run --dataroot set --gpu_ids -1".split()
IMAGES = Path("results/run/test_latest/images")


def write_images(folder: Path, count: int, size: int = 32, seed: int = 0) -> Path:
    """Random blocky photographs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        blocks = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        blocks.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    """In a folder with a data set; no weights are in torch's cache, whatever this machine has there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "set" / "testA", 3)
    write_images(tmp_path / "set" / "testB", 4, seed=1)


def evaluated(*words: str, receipt: str | Path = "evaluation.json") -> dict:
    """The receipt of an evaluation."""
    assert evaluate.main(words) == 0
    return json.loads(Path(receipt).read_text())


def test_two_folders_leave_a_receipt(squeezenet, capsys) -> None:
    write_images(Path("fake"), 3, seed=2)
    weights = ["--classifier_weights", str(squeezenet), "--class_index", "340"]
    receipt = evaluated(*FOLDERS, "--seed", "3", *weights)
    names = {"SWD", "FD-squeezenet1_1", "KD-squeezenet1_1", "class-340-squeezenet1_1"}
    assert set(receipt["numbers"]) == names
    assert (receipt["fake"]["count"], receipt["real"]["count"]) == (3, 4)
    assert receipt["networks"]["squeezenet1_1"]["sha256"] == sha256(squeezenet)
    assert receipt["options"]["seed"] == 3 and receipt["device"] == "cpu"
    assert receipt["versions"]["torch"] == torch.__version__.split("+")[0]
    printed = capsys.readouterr().out
    assert "3 translations against 4 images" in printed and "3 images per side; levels 32: " in printed
    swd = [evaluated(*FOLDERS, "--seed", seed)["numbers"]["SWD"] for seed in "34"]
    assert swd[0] == receipt["numbers"]["SWD"] != swd[1]


def test_a_run_is_judged_against_its_data_set(capsys) -> None:
    write_images(IMAGES / "fake_B", 2, seed=2)
    receipt = evaluated(*RUN, receipt=IMAGES.parent / "evaluation.json")
    assert receipt["real"]["folder"].endswith("testB")
    assert "2 translations of 3 images" in capsys.readouterr().err
    other = ["--direction", "BtoA", "--receipt", "new/other.json"]
    assert evaluated(*RUN, *other, receipt="new/other.json")["real"]["folder"].endswith("testA")
    assert evaluate.main([*RUN, "--epoch", "7"]) == 2
    assert "make them: python test.py --name=run --epoch=7" in capsys.readouterr().err


@pytest.fixture
def translations(monkeypatch) -> list[list[str]]:
    """The command lines of test.py, here a stand-in that writes three images for each epoch."""
    Path("checkpoints/run").mkdir(parents=True)
    calls = []

    def translate(argv: list[str]) -> int:
        calls.append(argv)
        epoch = next(word.split("=")[1] for word in argv if word.startswith("--epoch="))
        write_images(
            Path(f"results/run/test_{epoch}/images/fake_B"), 4, seed={"latest": 3}.get(epoch) or int(epoch)
        )
        return 0

    monkeypatch.setattr(evaluate.translation, "main", translate)
    return calls


def test_a_sweep_reports_last_and_best(translations, monkeypatch, capsys) -> None:
    """Checkpoint 1 translates into the real images; latest equals 20 and is not judged twice."""
    for epoch, number in {"1": 1, "5": 0, "20": 2, "latest": 2}.items():
        with open(f"checkpoints/run/{epoch}_net_G.pth", "wb") as file:  # a path would be in the file
            torch.save({"weights": torch.tensor(number)}, file)
    command = [*RUN, "--swd_size", "16", "--ngf", "8"]
    receipt = evaluated(*command, "--epochs", "all", receipt="results/run/evaluation_test.json")
    words = [{word for word in argv if "epoch" in word} for argv in translations]
    assert words == [{"--epoch=1"}, {"--epoch=5"}, {"--epoch=20"}]
    assert {"--name=run", "--dataroot=set", "--gpu_ids=-1", "--ngf=8"} <= set(translations[0])
    assert not any("swd_size" in word for word in translations[0])
    assert receipt["numbers"]["best"]["SWD"] == {"epoch": "1", "number": 0.0}
    assert receipt["numbers"]["last"]["epoch"] == "20" and receipt["numbers"]["last"]["SWD"] > 0
    assert "best, chosen by the test images themselves" in capsys.readouterr().out

    assert evaluate.main([*command, "--epochs", "6"]) == 2
    assert "6_net_G.pth" in capsys.readouterr().err
    monkeypatch.setattr(evaluate.translation, "main", lambda argv: 1)
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
    words = "--follow run --dataroot set --gpu_ids -1 --swd_size 16".split()
    receipt = evaluated(*words, receipt="results/run/evaluation_test.json")
    assert [row["epoch"] for row in receipt["checkpoints"]] == ["5", "10", "latest"]
    assert "--name=run" in translations[0] and not any("follow" in word for word in translations[0])


def shown(epoch: str) -> list[str]:
    """The SWD on the page of results."""
    page = Path(f"results/run/test_{epoch}/index.html").read_text()
    return re.findall(r"<dt>SWD</dt><dd>([\d.]+)</dd>", page)


def test_a_sweep_translates_by_test_py() -> None:
    folder = make_run(Path("checkpoints"), "--dataroot", "set")
    (folder / "5_net_G.pth").write_bytes((folder / "latest_net_G.pth").read_bytes())
    command = [*RUN, "--num_threads", "0"]
    sweep = evaluated(*command, "--epochs", "5,latest", receipt="results/run/evaluation_test.json")
    rows = sweep["checkpoints"]
    assert [shown(row["epoch"]) for row in rows] == [[f"{row['numbers']['SWD']:.4f}"] for row in rows]
    assert [(row["epoch"], row["fake"]["count"]) for row in rows] == [("5", 3), ("latest", 3)]
    assert ">checkpoints</text>" in Path("results/run/evaluation_test.svg").read_text()
    receipt = evaluated(*command, receipt=IMAGES.parent / "evaluation.json")
    assert receipt["numbers"] == rows[1]["numbers"] and receipt["checkpoint"] == rows[1]["checkpoint"]


def test_the_page_shows_no_numbers_of_other_results() -> None:
    make_run(Path("checkpoints"))
    page = IMAGES.parent / "index.html"
    assert translation.main(RUN) == 0
    made = page.read_text()
    for size in ("16", "32"):  # the second evaluation's instead of the first's
        receipt = evaluated(*RUN, "--swd_size", size, receipt=page.with_name("evaluation.json"))
        assert shown("latest") == [f"{receipt['numbers']['SWD']:.4f}"]
    assert 'href="./evaluation.json"' in page.read_text()
    assert made[made.index("<section") :] in page.read_text()
    assert translation.main(RUN) == 0 and page.read_text() == made


def test_styles_are_compared_by_lpips(capsys, squeezenet) -> None:
    """The mean over pairs of three styles, of two images, by the library itself."""
    pytest.importorskip("lpips")
    command = [*RUN, "--metrics", "lpips", "--classifier_weights", str(squeezenet)]
    assert evaluate.main(command) == 2
    assert "test.py --name run --epoch latest --num_styles" in capsys.readouterr().err
    styles = [write_images(IMAGES / f"fake_B_style{n}", 2, size=64, seed=n) for n in range(3)]
    receipt = evaluated(*command, receipt=IMAGES.parent / "evaluation.json")
    network, _ = load_lpips(squeezenet)
    expected = []
    for name in ("0.png", "1.png"):
        a, b, c = (to_tensor(open_rgb(style / name))[None] for style in styles)
        pairs = ((a, b), (a, c), (b, c))
        expected.append(np.mean([network(x, y, normalize=True).item() for x, y in pairs]))
    assert receipt["numbers"]["LPIPS"] == pytest.approx(np.mean(expected), rel=1e-4)
    trunk = torch.load(squeezenet, weights_only=True)
    torch.testing.assert_close(network.net.slice2[1].squeeze.weight, trunk["features.3.squeeze.weight"])


def test_structure_compares_each_translation_with_its_input(monkeypatch, capsys) -> None:
    """Those of a run lie beside its translations."""
    torch.manual_seed(0)
    keys = DinoKeys(layers=2, heads=2, width=16).eval().requires_grad_(False)
    dino = FeatureNetwork("dino_vitbase8", keys, dino_transform, {})
    for parameter in keys.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    Path("dino.pth").touch()
    monkeypatch.setattr(judging.networks, "load_dino", lambda path, device: dino)
    sides = [write_images(IMAGES / name, 3, seed=seed) for seed, name in ((2, "real_A"), (3, "fake_B"))]
    command = [*RUN, "--dino_weights", "dino.pth"]
    receipt = evaluated(*command, receipt=IMAGES.parent / "evaluation.json")
    images = ([open_rgb(side / f"{n}.png") for n in range(3)] for side in sides)
    expected = 100 * np.mean(structure_distance(*images, dino))
    assert receipt["numbers"]["structure"] == pytest.approx(expected, rel=1e-5) and expected > 0
    (sides[0] / "1.png").rename(sides[0] / "3.png")
    assert evaluate.main(command) == 2
    assert "each translation needs the input of its name" in capsys.readouterr().err


def test_label_maps_are_scored() -> None:
    for folder in ("label", "pred"):
        Path(folder).mkdir()
        Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(f"{folder}/a.png")
    receipt = evaluated("--pred", "pred", "--label", "label", "--gpu_ids", "-1")
    assert receipt["numbers"] == {"mean IoU": 100, "pixel accuracy": 100, "class accuracy": 100}
    assert receipt["class_iou"]["road"] == 100 and receipt["class_iou"]["bicycle"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "fid"], "--inception_weights: no file"),
        (["--metrics", "lpips"], "needs the styles of a run"),
        (["--metrics", "swd,segmentation"], "needs --pred DIR"),
        (["--metrics", "class"], "needs --class_index"),
        (["--classifier", "resnet50", "--class_index", "340"], "--classifier_weights: no file"),
        (["--metrics", "stripes"], "set with masks"),
        (["--metrics", "structure"], "give --inputs DIR"),
        (["--epochs", "all"], "checkpoints of a run"),
        (["--receipt", "fake/0.png/receipt.json"], "0.png"),
    ],
)
def test_wrong_calls_are_refused(options, message, capsys) -> None:
    """With status 2 and one line, by the parser (which exits) or later (which returns)."""
    write_images(Path("fake"), 3, seed=2)
    try:
        status = evaluate.main([*FOLDERS, *options])
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and "Traceback" not in error
