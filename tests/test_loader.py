"""The loader: the same batches with any number of workers, from any position; clear errors and ends."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import create_loader
from util.errors import UserError
from util.image_files import ImageError

PROJECT = Path(__file__).resolve().parent.parent
forked = pytest.mark.skipif(sys.platform != "linux", reason="needs forked workers")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Seven of A, four of B, of differing sizes; two of test A."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for folder, count in {"trainA": 7, "trainB": 4, "testA": 3, "testB": 1}.items():
        (root / folder).mkdir()
        for number in range(count):
            pixels = generator.integers(0, 256, (30 + number, 40 - number, 3), np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    return root


def options(dataroot: Path, **changed) -> Namespace:
    """The options the loader reads, small."""
    values = dict(
        dataroot=str(dataroot), phase="train", dataset_mode="unaligned", direction="AtoB", isTrain=True
    )
    values |= dict(num_threads=0, batch_size=2, load_size=24, crop_size=16, preprocess="resize_and_crop")
    values |= dict(
        serial_batches=False, max_dataset_size=float("inf"), no_flip=False, input_nc=3, output_nc=3
    )
    values |= dict(seed=0, n_epochs=2, crop_late=False, n_iterations=0, n_iterations_decay=0)
    values |= dict(cache_gb=0.1, on_bad_image="stop", grey_range="auto")
    return Namespace(**(values | changed))


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        for name, value in first.items()
    )


def broken_set(folder: Path) -> Path:
    """Four and four images, one of A broken."""
    for domain in "AB":
        (folder / f"train{domain}").mkdir(parents=True)
        for number in range(4):
            Image.effect_noise((32, 32), 50).save(folder / f"train{domain}" / f"{number}.png")
    (folder / "trainA" / "1.png").write_bytes(b"broken")
    return folder


def test_batches_have_the_public_form(images):
    loader = create_loader(options(images, input_nc=1), "cpu")
    assert len(loader) == 3 and loader.dataset.sizes == {"A": 7, "B": 4}
    state = torch.random.get_rng_state()
    batches = list(loader.epoch(1))
    assert len(batches) == 3
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing is drawn from the global state
    for batch in batches:
        assert batch.keys() == {"A", "B", "A_paths", "B_paths", "A_windows", "B_windows"}
        assert batch["A"].shape == (2, 1, 16, 16) and batch["B"].shape == (2, 3, 16, 16)
        assert batch["B"].dtype == torch.float32 and batch["B"].min() >= -1 and batch["B"].max() <= 1
        assert all(Path(path).parent.name == "trainA" for path in batch["A_paths"])


@pytest.mark.parametrize("preprocess", ["resize_and_crop", "crop", "none"])
@pytest.mark.parametrize("phase", ["train", "test"])
def test_a_batch_is_what_the_files_and_windows_say(images, preprocess, phase):
    """Against Pillow alone."""
    how = dict(phase=phase, isTrain=phase == "train", preprocess=preprocess, load_size=20, batch_size=1)
    loader, flips = create_loader(options(images, **how), "cpu"), set()
    for batch in [*loader.epoch(1), *loader.epoch(2)]:
        for domain in "AB":
            image = Image.open(batch[f"{domain}_paths"][0])
            if preprocess != "crop":
                sides = [round(side / 4) * 4 if preprocess == "none" else 20 for side in image.size]
                image = image.resize(sides, Image.Resampling.BICUBIC)
            ((top, left, height, width, flip),) = batch[f"{domain}_windows"].tolist()
            rows, columns = (round(top * image.height), round(left * image.width))
            wanted = np.asarray(image, np.float32) / 127.5 - 1
            wanted = wanted[rows:, columns:][: round(height * image.height), : round(width * image.width)]
            wanted = wanted[:, ::-1] if flip else wanted
            np.testing.assert_allclose(batch[domain][0].permute(1, 2, 0), wanted, atol=1e-6)
            flips.add(flip)
            if phase == "test" and preprocess != "none":
                assert (rows, columns) == ((image.height - 16) // 2, (image.width - 16) // 2)
    assert flips == ({0, 1} if phase == "train" else {0})


@pytest.mark.parametrize("preprocess", ["resize_and_crop", "crop"])
def test_workers_cache_and_position_change_nothing(images, preprocess):
    plain = create_loader(options(images, cache_gb=0, preprocess=preprocess), "cpu")
    workers = create_loader(options(images, num_threads=2, preprocess=preprocess), "cpu")
    for epoch in (1, 2, 3, 4):  # the resize changes after the second, with the same workers
        expected = list(plain.epoch(epoch))
        got = list(workers.epoch(epoch))
        assert len(got) == len(expected) and all(map(same, got, expected))
        if preprocess == "resize_and_crop" and epoch in (2, 4):
            assert workers.dataset.stores["A"].cached == 7
    for loader in (plain, workers):
        expected = list(loader.epoch(1))
        for _ in range(3):  # leave early, at once start anew elsewhere
            next(loader.epoch(2))
            resumed = list(loader.epoch(1, first_position=2))
            assert len(resumed) == 2 and all(map(same, resumed, expected[1:]))
    workers.close()


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_broken_image_stops_as_itself_or_is_skipped_with_one_warning(tmp_path, capsys, num_threads):
    how = dict(dataroot=broken_set(tmp_path), num_threads=num_threads, batch_size=1)
    stopping = create_loader(options(**how), "cpu")
    with pytest.raises(ImageError, match="trainA/1.png': it is not an image"):
        list(stopping.epoch(1))
    stopping.close()
    loader = create_loader(options(**how, on_bad_image="skip"), "cpu")
    epochs = [list(loader.epoch(epoch)) for epoch in (1, 2, 3)]
    assert [len(batches) for batches in epochs] == [4, 4, 4]
    assert capsys.readouterr().err.count("1.png") == 1
    how |= dict(num_threads=0, on_bad_image="skip")
    assert all(map(same, epochs[2], create_loader(options(**how, cache_gb=0), "cpu").epoch(3)))
    loader.close()
    test = options(**how | dict(batch_size=2), isTrain=False, load_size=16)  # none in its place
    batches = list(create_loader(test, "cpu").epoch(1))
    assert [Path(path).name for batch in batches for path in batch["A_paths"]] == ["0.png", "2.png", "3.png"]
    assert [len(batch["A"]) for batch in batches] == [1, 2]
    assert "warning: left out: " in capsys.readouterr().err


@forked
@pytest.mark.parametrize("taken", [1, 7])  # in mid-epoch, between epochs
def test_a_killed_worker_is_an_error_that_says_so_and_not_a_hang(images, taken):
    loader = create_loader(options(images, num_threads=2, batch_size=1, cache_gb=0), "cpu")
    batches = itertools.chain(loader.epoch(1), loader.epoch(2))
    for _ in range(taken):
        next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match="a process that loads images was killed. .* --num_threads 0"):
        list(batches)
    assert not multiprocessing.active_children()


SCRIPT = """
import json, multiprocessing, os, resource, signal, sys
from argparse import Namespace
from data import create_loader

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
batches = create_loader(Namespace(**json.loads(sys.argv[1])), "cpu").epoch(1)
next(batches)
print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
raise KeyboardInterrupt
"""


@forked
@pytest.mark.parametrize("end", ["kill", "interrupt"])
def test_workers_need_no_shared_memory_and_end_with_the_program(images, end):
    """The limit of file sizes stands for a container's small /dev/shm."""
    opt = vars(options(images, num_threads=2, load_size=300, crop_size=256, cache_gb=0))
    program = [sys.executable, "-c", SCRIPT, json.dumps(opt), end]
    ended = subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    workers = [Path(f"/proc/{int(number)}/status") for number in ended.stdout.split()]
    assert len(workers) == 2 and ended.stderr.count("Traceback") == (end == "interrupt")
    for _ in range(100):
        if not any(path.exists() and "zombie" not in path.read_text() for path in workers):
            return
        time.sleep(0.1)
    raise AssertionError("the workers outlive the training")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("num_threads", [0, 2])
def test_batches_on_cuda_are_those_of_the_cpu(images, num_threads):
    """Also while the device is busy and memory is reused, which a missing wait would show."""
    expected = list(create_loader(options(images, batch_size=1), "cpu").epoch(1)) * 20
    loader = create_loader(options(images, batch_size=1, num_threads=num_threads), "cuda")
    busy = torch.randn(4096, 4096, device="cuda")
    kept = []
    for _ in range(20):
        for batch in loader.epoch(1):
            busy = (busy @ busy).clamp(-1, 1)
            kept.append({domain: batch[domain] + 0 for domain in "AB"})
            del batch
    assert len(kept) == len(expected)
    for batch, reference in zip(kept, expected, strict=True):
        assert batch["A"].is_cuda
        assert torch.equal(batch["A"].cpu(), reference["A"]) and torch.equal(batch["B"].cpu(), reference["B"])
    loader.close()
