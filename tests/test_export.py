"""scripts/export.py: what is exported computes what the generator does, at sizes it was not traced with."""

import logging

import pytest
import torch
from trained_run import make_run

from models.inference import load_generator
from scripts import export

RUNS = {
    "run": "",
    "unet": "--netG unet_128 --nce_layers 0,1 --crop_size 128 --load_size 128",
    "styled": "--model munit --mlp_dim 8 --n_res 1 --style_dim 3 --num_scales 1",
    "multi": "--model qs_multi --domains cat,dog,wild --nce_layers 0,4,8",
    "stargan": "--model stargan --domains cat,dog,wild --g_repeat_num 1 --d_repeat_num 2",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, words in RUNS.items():
        make_run(folder, *words.split(), name=name)
    return folder


@pytest.fixture(autouse=True, scope="module")
def quiet_traces():
    """torch writes thousands of debugging records while it traces if pytest captures them."""
    logger = logging.getLogger("torch.__trace")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture
def exported(runs, tmp_path):
    """Export a run with more words; the exported network as a function of tensors, and its inputs' names."""

    def export_run(name: str, *words: str):
        path = tmp_path / "deep" / "exported"
        assert (
            export.main(["--name", name, "--checkpoints_dir", str(runs), "--output", str(path), *words]) == 0
        )
        assert [file.name for file in path.parent.iterdir()] == [path.name]  # the weights are inside
        onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
        model = onnx.load(path)
        onnx.checker.check_model(model)
        assert next(entry.version for entry in model.opset_import if not entry.domain) >= 17
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]

        def run(*inputs: torch.Tensor) -> torch.Tensor:
            values = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
            return torch.from_numpy(session.run(["translation"], values)[0])

        return run, names

    return export_run


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.inference_mode()
@pytest.mark.parametrize("name, shapes", [
    ("run", [(1, 3, 16, 16), (2, 3, 24, 36), (5, 3, 100, 16), (1, 3, 132, 96)]),
    ("unet", [(1, 3, 256, 256), (2, 3, 256, 384)]),
])  # fmt: skip
def test_any_size(exported, runs, capsys, name, shapes):
    pytest.importorskip("onnxscript")
    found, names = exported(name)
    assert capsys.readouterr().out.count("differs by at most") == 3 and names == ["image"]
    net = load_generator(name, runs, device="cpu").net
    for shape in shapes:
        torch.testing.assert_close(found(images(*shape)), net(images(*shape)), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_the_style_is_a_second_input(exported, runs):
    pytest.importorskip("onnxscript")
    found, names = exported("styled", "--direction", "BtoA")
    assert names == ["image", "style"]
    net = load_generator("styled", runs, device="cpu", direction="BtoA").net
    for shape in [(1, 3, 16, 16), (3, 3, 24, 40)]:
        image, style = images(*shape), images(shape[0], 3)
        torch.testing.assert_close(found(image, style), net(image, style), rtol=0, atol=1e-4)
        assert (net(image, style) - net(image, -style)).abs().max() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("name", ["multi", "stargan"])
def test_the_domain_is_a_second_input_or_fixed(exported, runs, capsys, name):
    pytest.importorskip("onnxscript")
    image, net = images(3, 3, 24, 40), load_generator(name, runs, device="cpu").net
    found, names = exported(name)
    assert "input domain: 0 cat, 1 dog, 2 wild" in capsys.readouterr().out and names == ["image", "domain"]
    domain = torch.tensor([2, 0, 1])
    torch.testing.assert_close(found(image, domain), net(image, domain), rtol=0, atol=1e-4)
    found, names = exported(name, "--domain", "dog")
    assert names == ["image"]
    torch.testing.assert_close(found(image), net(image, torch.tensor([1, 1, 1])), rtol=0, atol=1e-4)
    assert export.main(["--name", name, "--checkpoints_dir", str(runs), "--domain", "cow"]) == 2
    assert "its domains are cat, dog, wild" in capsys.readouterr().err


def test_wrong_calls_are_named_with_status_2(runs, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        export.main([])
    assert "--name is missing" in capsys.readouterr().err
    monkeypatch.setattr(export, "find_spec", lambda name: name != "onnxruntime")
    assert export.main(["--checkpoints_dir", str(runs), "--name", "run"]) == 2
    assert "pip install onnxruntime" in capsys.readouterr().err
