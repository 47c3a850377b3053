"""Settings for all tests: one torch thread (tensors are tiny), the project's path, where kernels run."""

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by started trainings too

on_gpu = pytest.mark.gpu  # `-m gpu` selects them


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="module")  # for other tests look whether a process was left behind
def interpreter():
    """`interpreter.submit(function, *args)` runs with Triton's interpreter, in a process of its own.

    Triton reads the environment variable when first imported, which another test may have done, and the same
    session tests the compiled kernels. The variable is set only while the process starts.
    """
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        pool.submit(torch.set_num_threads, 1).result()
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
    yield pool
    pool.shutdown()


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=on_gpu)])
def run(request):
    """run(function, tensor, *args): the function's result on the device under test, moved to the CPU."""
    if request.param == "cuda":
        return lambda function, tensor, *args: _to_cpu(function(tensor.cuda(), *args))
    pool = request.getfixturevalue("interpreter")
    return lambda function, tensor, *args: pool.submit(function, tensor, *args).result()


def _to_cpu(result):
    if isinstance(result, dict):
        return {name: _to_cpu(value) for name, value in result.items()}
    return result.cpu()


@pytest.fixture(scope="session")
def dataroot(tmp_path_factory):
    """A data set of noise: 5 images of A, 4 of B."""
    from training_process import make_images

    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(steps): the next training is asked to stop after so many steps."""
    from util.watch.monitor import Report

    def arrange(steps):
        step, count = Report.step, iter(range(1, 10**6))

        def stopping(report):
            step(report)
            if next(count) == steps:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Report, "step", stopping)

    return arrange


@pytest.fixture(autouse=True)
def _restore_determinism():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def float64():
    """New networks and tensors are float64, as the golden numbers of the baselines were computed."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder on a web server, and its address; torch's cache is an empty folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture(scope="session")
def squeezenet(tmp_path_factory):
    """A weights file of torchvision's squeezenet1_1, with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    return path
