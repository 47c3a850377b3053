"""scripts/export.py: what is exported computes what the generator does, at sizes it was not traced with."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from trained_run import make_run

from models import create_model
from models.inference import load_generator
from options.train_options import TrainOptions
from scripts import export
from util.run.saved_options import write_options


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    make_run(folder)
    unet = "--netG unet_128 --nce_layers 0,1 --crop_size 128 --load_size 128"
    make_run(folder, *unet.split(), name="unet")
    return folder


@pytest.fixture(autouse=True, scope="module")
def quiet_traces():
    """torch writes thousands of debugging records while it traces if pytest captures them."""
    logger = logging.getLogger("torch.__trace")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.inference_mode()
def test_torch_export_at_any_size(runs, tmp_path, capsys):
    path = tmp_path / "deep" / "run.pt2"
    words = f"--name run --checkpoints_dir {runs} --format torch_export --output {path}"
    assert export.main(words.split()) == 0
    assert capsys.readouterr().out.count("differs by at most") == 3
    loaded, net = torch.export.load(path).module(), load_generator("run", runs, device="cpu").net
    for shape in [(1, 3, 16, 16), (1, 3, 16, 40), (4, 3, 64, 20), (1, 3, 132, 96)]:
        torch.testing.assert_close(loaded(images(*shape)), net(images(*shape)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name, shapes", [
    ("run", [(1, 3, 16, 16), (2, 3, 24, 36), (5, 3, 100, 16)]),
    ("unet", [(1, 3, 256, 256), (2, 3, 256, 384)]),
])  # fmt: skip
def test_onnx_at_any_size(runs, tmp_path, capsys, name, shapes):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / f"{name}.onnx"
    assert export.main(["--name", name, "--checkpoints_dir", str(runs), "--output", str(path)]) == 0
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # the weights are inside
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert next(entry.version for entry in model.opset_import if not entry.domain) >= 17
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    net = load_generator(name, runs, device="cpu").net
    for shape in shapes:
        with torch.inference_mode():
            expected = net(images(*shape)).numpy()
        result = session.run(["translation"], {"image": images(*shape).numpy()})[0]
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)


def test_a_difference_above_the_tolerance_fails_and_evaluation_mode_is_said(
    runs, tmp_path, capsys, monkeypatch
):
    make_run(tmp_path, *"--normG batch --eval false".split(), name="as_in_training")
    modes = []
    monkeypatch.setattr(export, "trace", lambda net, *_: modes.append(net.training))
    wrong = lambda image: np.ones_like(image)  # noqa: E731
    monkeypatch.setattr(export, "write_torch_export", lambda program, path, _: path.touch() or wrong)
    words = f"--checkpoints_dir {tmp_path} --format torch_export --output {tmp_path}/b.pt2".split()
    assert export.main(["--name", "as_in_training", *words]) == 1
    told = capsys.readouterr().err
    assert "more than 0.001" in told and "--eval false" in told and modes == [False]


def test_wrong_calls_are_named_with_status_2(runs, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        export.main([])
    assert "--name is missing" in capsys.readouterr().err
    monkeypatch.setattr(export, "find_spec", lambda name: name != "onnxruntime")
    assert export.main(["--checkpoints_dir", str(runs), "--name", "run"]) == 2
    assert "pip install onnxruntime" in capsys.readouterr().err


@pytest.fixture(scope="module")
def styled(tmp_path_factory):
    """A run of MUNIT, untrained."""
    folder = tmp_path_factory.mktemp("munit")
    options = TrainOptions()
    words = "--model munit --gpu_ids -1 --ngf 4 --ndf 2 --mlp_dim 8 --n_res 1 --style_dim 3 --name run"
    opt = options.parse([*words.split(), "--checkpoints_dir", str(folder)])
    torch.manual_seed(0)
    model = create_model(opt)
    write_options(folder / "run", opt, options.parser.defaults)
    model.save_networks(folder / "run", "latest")
    return folder


@torch.inference_mode()
@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_the_style_is_a_second_input(styled, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxscript")
        onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "run"
    words = f"--name run --checkpoints_dir {styled} --format {format} --output {path} --direction BtoA"
    assert export.main(words.split()) == 0
    translator = load_generator("run", styled, device="cpu", direction="BtoA")
    net = translator.net
    for shape in [(1, 3, 16, 16), (3, 3, 24, 40)]:
        image, style = images(*shape), images(shape[0], 3)
        if format == "onnx":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            inputs = {"image": image.numpy(), "style": style.numpy()}
            found = torch.from_numpy(session.run(["translation"], inputs)[0])
        else:
            found = torch.export.load(path).module()(image, style)
        torch.testing.assert_close(found, net(image, style), rtol=0, atol=1e-4)
        assert (net(image, style) - net(image, -style)).abs().max() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize(
    "model", ["qs_multi --netG resnet_4blocks --nce_layers 0,4,8", "stargan --g_repeat_num 1"]
)
def test_the_domain_is_a_second_input_or_fixed(tmp_path, capsys, monkeypatch, model):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    options = TrainOptions()
    words = f"--model {model} --domains cat,dog,wild --gpu_ids -1 --ngf 4 --ndf 4 --name run"
    opt = options.parse([*words.split(), "--checkpoints_dir", str(tmp_path)])
    opt.init_gain = 0.5
    write_options(tmp_path / "run", opt, options.parser.defaults)
    create_model(opt).save_networks(tmp_path / "run", "latest")
    monkeypatch.chdir(tmp_path)
    words = ["--name", "run", "--checkpoints_dir", str(tmp_path)]
    assert export.main(words) == 0
    assert "input domain: 0 cat, 1 dog, 2 wild" in capsys.readouterr().out
    assert export.main([*words, "--domain", "cow"]) == 2
    assert "its domains are cat, dog, wild" in capsys.readouterr().err
    files = {"run_latest.onnx": [2, 0, 1]}
    if "qs" in model:
        assert export.main([*words, "--domain", "dog"]) == 0
        files["run_latest_to_dog.onnx"] = [1, 1, 1]
    net, shape = load_generator("run", tmp_path, device="cpu").net, (3, 3, 24, 40)
    for file, domain in files.items():
        session = onnxruntime.InferenceSession(tmp_path / file, providers=["CPUExecutionProvider"])
        inputs = {"image": images(*shape).numpy(), "domain": np.array(domain)}
        names = [entry.name for entry in session.get_inputs()]
        assert names == list(inputs)[: 1 if "to_dog" in file else 2]
        (found,) = session.run(["translation"], {name: inputs[name] for name in names})
        expected = net(images(*shape), torch.tensor(domain)).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
