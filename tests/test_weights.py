"""Weights files: saved and loaded for every architecture, and the messages for files that do not fit."""

import os
import pickle
from argparse import Namespace

import pytest
import torch
from archives import flip_a_bit
from torch import nn

from models.build import build_discriminator, build_generator, build_heads
from models.generator import ResnetGenerator
from models.weights import architecture, checkpoint_file, load_weights, misfit, save_tensors
from options.train_options import TrainOptions
from util.errors import UserError
from util.weight_files import read_tensors

WORDS = "--gpu_ids -1 --netG resnet_4blocks --ngf 2 --ndf 2 --netF_nc 4 --nce_layers 0,4,8 --qs_layers 8"
GENERATORS = [
    dict(netG="resnet_9blocks"),
    dict(no_dropout=False, input_nc=1),
    dict(no_antialias=True, output_nc=1),
    dict(no_antialias_up=True, ngf=3),
    dict(normG="batch"),
    dict(normG="none"),
    dict(netG="unet_256", normG="batch"),
]
DISCRIMINATORS = [
    dict(netD="n_layers", n_layers_D=4, no_antialias=True),
    dict(normD="batch"),
    dict(netD="pixel", normD="none"),
]


@pytest.fixture(scope="module")
def options():
    opt = TrainOptions().parse(WORDS.split())
    return lambda **changes: Namespace(**{**vars(opt), **changes})


@pytest.fixture
def generator(options):
    return lambda **changes: build_generator(options(**changes))


def heads(opt: Namespace) -> nn.Module:
    return build_heads(opt, build_generator(opt))


BUILDERS = [
    *((build_generator, changes) for changes in GENERATORS),
    *((build_discriminator, changes) for changes in DISCRIMINATORS),
    (heads, {}),
    (heads, dict(netF="sample")),
]


@pytest.mark.parametrize("build, changes", BUILDERS)
def test_there_and_back_with_prefixes_and_rebuilt_from_weights_alone(tmp_path, options, build, changes):
    saved = build(options(**changes))
    with torch.no_grad():
        for tensor in saved.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape))
    path = tmp_path / "latest_net_X.pth"
    save_tensors(saved.state_dict(), path)
    state = torch.load(path, weights_only=True)
    assert list(state) == list(saved.state_dict())
    for prefix in ("", "module._orig_mod."):
        torch.save({prefix + key: value for key, value in state.items()}, path)
        loaded = build(options(**changes))
        load_weights(loaded, path)
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, state[key]), key
    found = architecture(state)
    assert bool(found) == (build is build_generator)
    if found:
        rebuilt = build_generator(Namespace(**{"no_dropout": True, **found}, init_type="xavier", init_gain=1))
        assert list(rebuilt.state_dict()) == list(state) and misfit(rebuilt, state) is None


def test_what_is_saved_is_float32_and_without_the_rest_of_a_storage(generator, tmp_path):
    net = generator().double()
    weight = net.model[1].weight
    weight.data = torch.zeros(1_000_000).double()[: weight.numel()].view_as(weight)
    save_tensors(net.state_dict(), tmp_path / "a.pth")
    assert {value.dtype for value in read_tensors(tmp_path / "a.pth").values()} == {torch.float32}
    assert os.path.getsize(tmp_path / "a.pth") < 200_000
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]  # nothing temporary


def without(end: str):
    return lambda state: {key: value for key, value in state.items() if not key.endswith(end)}


@pytest.mark.parametrize(
    "norm, change",
    [
        ("instance", without("filt")),  # constants
        ("instance", lambda state: {**state, "model.2.running_mean": torch.ones(2)}),  # torch 0.3
        ("instance", lambda state: {**state, "model.2.num_batches_tracked": torch.tensor(3)}),
        ("batch", without("num_batches_tracked")),  # batch norms of torch 0.3
        ("batch", lambda state: {k: v.reshape(1) if v.ndim == 0 else v for k, v in state.items()}),
        ("batch", lambda state: {key: value.half() for key, value in state.items()}),
    ],
)
def test_files_of_older_versions_load(generator, tmp_path, norm, change):
    net = generator(normG=norm)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.copy_(tensor.half())
    path = tmp_path / "x.pth"
    torch.save(change(net.state_dict()), path, _use_new_zipfile_serialization=False)  # as torch before 1.6
    other = generator(normG=norm)
    load_weights(other, path)
    for key, value in other.state_dict().items():
        assert torch.equal(value, net.state_dict()[key]) or key.endswith("num_batches_tracked")


@pytest.mark.parametrize(
    "build, saved, asked, message",
    [
        (build_generator, dict(ngf=4), {}, "options are --ngf 2; give those of its training, --ngf 4"),
        (build_generator, dict(no_antialias=True), {}, "--no_antialias false; .* --no_antialias true"),
        (build_generator, {}, dict(normG="batch"), "--normG batch; .* --normG instance"),
        (heads, dict(netF_nc=8), {}, "the shapes differ, .*: mlp_0.0.weight"),
        (build_discriminator, dict(ndf=4, normD="batch"), {}, "no such tensor: model.0.weight, .* more"),
    ],
)
def test_another_architecture_is_told_by_its_option_else_by_keys(
    options, tmp_path, build, saved, asked, message
):
    save_tensors(build(options(**saved)).state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"x.pth does not fit the network: .*{message}") as error:
        load_weights(build(options(**asked)), tmp_path / "x.pth")
    assert len(str(error.value)) < 400


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def archive(tmp_path, content) -> bytes:
    torch.save(content, tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content, message",
    [
        (lambda t: b"\n<!DOCTYPE html><html>", "is a web page .*download the file itself"),
        (lambda t: b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (lambda t: archive(t, ResnetGenerator(ngf=2).state_dict())[:5000], "damaged or cut short"),
        (lambda t: archive(t, Bomb()), "pickled code or objects, which are never executed"),
        (lambda t: pickle.dumps(Bomb()), "pickled code or objects"),
        (lambda t: archive(t, {"state_dict": {}, "epoch": 3}), "not the bare state dict"),
    ],
)
def test_what_is_no_checkpoint_is_named_and_never_executed(
    generator, tmp_path, monkeypatch, content, message
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "latest_net_G.pth"
    path.write_bytes(content(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        load_weights(generator(), path)
    assert str(path) in str(error.value)
    assert not (tmp_path / "exploded").exists()


def test_one_flipped_bit_and_numbers_that_are_not_finite_are_noticed(generator, tmp_path):
    path = tmp_path / "latest_net_G.pth"
    save_tensors(generator().state_dict(), path)
    state = read_tensors(path)
    flip_a_bit(path)
    torch.load(path, weights_only=True)  # torch itself takes the number as it is
    with pytest.raises(UserError, match="latest_net_G.pth: it is damaged or cut short"):
        read_tensors(path)
    state["model.4.weight"] = state["model.4.weight"].half() * 1e9
    torch.save(state, path)
    with pytest.raises(UserError, match="model.4.weight .*not finite"):
        read_tensors(path)
    for odd in (torch.eye(2).to_sparse(), torch.empty(2, device="meta")):
        torch.save({"x": odd}, path)
        with pytest.raises(UserError, match="not the bare state dict"):
            read_tensors(path)


def test_a_missing_checkpoint_lists_those_there_are(generator, tmp_path):
    run = tmp_path / "horses" / "first"
    run.mkdir(parents=True)
    with pytest.raises(UserError, match="train a run .*--list_pretrained"):
        checkpoint_file(tmp_path, "zebras", "latest")
    with pytest.raises(UserError, match="saved no weights yet"):
        checkpoint_file(tmp_path, "horses/first", "latest")
    for epoch in ("10", "5", "latest"):
        save_tensors(generator().state_dict(), run / f"{epoch}_net_G.pth")
    assert checkpoint_file(tmp_path, "horses/first", "10") == run / "10_net_G.pth"
    with pytest.raises(UserError, match="7_net_G.pth: --epoch can be 5, 10, latest"):
        checkpoint_file(tmp_path, "horses/first", "7")
    with pytest.raises(UserError, match="--name can be horses/first"):
        checkpoint_file(tmp_path, "zebras", "latest")
