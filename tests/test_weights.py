"""Weights files: saved and loaded for every architecture, and the messages for files that do not fit."""

from __future__ import annotations

import os
import pickle
from argparse import Namespace

import pytest
import torch
from archives import flip_a_bit
from golden import DATA
from torch import nn

from models.architecture import architecture, differences
from models.build import build_discriminator, build_generator, build_heads
from models.generator import ResnetGenerator
from models.weights import checkpoint_file, load_weights, read_weights, save_weights
from util.errors import UserError

SMALL = dict(
    name="run",
    direction="AtoB",
    init_type="xavier",
    init_gain=0.02,
    input_nc=3,
    output_nc=3,
    netG="resnet_4blocks",
    ngf=2,
    normG="instance",
    no_dropout=True,
    no_antialias=False,
    no_antialias_up=False,
    netD="basic",
    ndf=2,
    n_layers_D=3,
    normD="instance",
    netF="mlp_sample",
    netF_nc=4,
    nce_layers=[0, 4, 8],
)

GENERATORS = [
    dict(netG="resnet_9blocks"),
    dict(netG="resnet_6blocks", no_dropout=False),
    dict(no_antialias=True),
    dict(no_antialias_up=True),
    dict(normG="batch"),
    dict(normG="none"),
    dict(input_nc=1),
    dict(output_nc=1),
    dict(ngf=3),
    dict(netG="unet_128"),
    dict(netG="unet_256", normG="batch"),
]
DISCRIMINATORS = [
    dict(netD="basic"),
    dict(netD="n_layers", n_layers_D=2),
    dict(netD="n_layers", n_layers_D=4, no_antialias=True),
    dict(netD="basic", normD="batch"),
    dict(netD="pixel", normD="none"),
    dict(output_nc=1),
]


def options(**changes) -> Namespace:
    return Namespace(**{**SMALL, **changes})


def generator(**changes) -> nn.Module:
    return build_generator(options(**changes))


def heads(**changes) -> nn.Module:
    opt = options(**changes)
    return build_heads(opt, build_generator(opt))


BUILDERS = [
    *((build_generator, changes) for changes in GENERATORS),
    *((build_discriminator, changes) for changes in DISCRIMINATORS),
    (lambda opt: heads(**vars(opt)), {}),
    (lambda opt: heads(**vars(opt)), dict(netF="sample")),
]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("build, changes", BUILDERS)
def test_there_and_back(tmp_path, build, changes, prefix):
    saved, loaded = build(options(**changes)), build(options(**changes))
    with torch.no_grad():
        for tensor in saved.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape))
    path = tmp_path / "latest_net_X.pth"
    save_weights(saved, path)
    state = torch.load(path, weights_only=True)
    assert list(state) == list(saved.state_dict())
    torch.save({prefix + key: value for key, value in state.items()}, path)
    load_weights(loaded, path, options(**changes))
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("changes", GENERATORS)
def test_a_generator_is_rebuilt_from_its_weights_alone(changes):
    state = generator(**changes).state_dict()
    found = {"no_dropout": True, **architecture(state)}
    rebuilt = build_generator(Namespace(**found, init_type="xavier", init_gain=0.02))
    assert {key: value.shape for key, value in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in state.items()
    }


def test_what_is_saved_are_the_wrapped_networks_own_tensors_on_the_cpu(tmp_path):
    net = generator()
    save_weights(nn.DataParallel(net.double()), tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(state) == list(net.state_dict())
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in state.values())
    # A view of a large storage is saved without the rest of it.
    net.float().model[1].weight.data = torch.zeros(1_000_000)[: net.model[1].weight.numel()].view_as(
        net.model[1].weight
    )
    save_weights(net, tmp_path / "b.pth")
    assert os.path.getsize(tmp_path / "b.pth") < 200_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]  # nothing temporary


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    net, path = generator(), tmp_path / "latest_net_G.pth"
    save_weights(net, path)
    before = path.read_bytes()

    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(net, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_released_weights_load_with_and_without_their_filters(tmp_path):
    net = ResnetGenerator(ngf=8)
    load_weights(net, DATA / "generator_resnet9_net_G.pth")
    state = torch.load(DATA / "generator_resnet9_net_G.pth", weights_only=True)
    torch.save({key: value for key, value in state.items() if not key.endswith("filt")}, tmp_path / "x.pth")
    other = ResnetGenerator(ngf=8)
    load_weights(other, tmp_path / "x.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_statistics_that_old_instance_norms_kept_are_passed_over(tmp_path):
    state = generator().state_dict()
    torch.save(
        {**state, "model.2.running_mean": torch.zeros(2), "model.2.running_var": torch.ones(2)},
        tmp_path / "x.pth",
    )
    load_weights(generator(), tmp_path / "x.pth")


@pytest.mark.parametrize(
    "build, saved, asked, message",
    [
        (generator, dict(netG="resnet_6blocks"), {},
            "has 6 residual blocks, but --netG resnet_4blocks asks for 4 residual blocks: give --netG "
            "resnet_6blocks"),
        (generator, dict(ngf=4), {},
            "4 channels after its first convolution, but --ngf 2 asks for 2 .*give --ngf 4"),
        (generator, dict(input_nc=1), {}, "1 input channels, but --input_nc 3"),
        (generator, dict(output_nc=1), {}, "give --output_nc 1"),
        (generator, dict(no_antialias=True), {},
            "no blurred downsampling, but --no_antialias false .*give --no_antialias true"),
        (generator, {}, dict(no_antialias_up=True), "give --no_antialias_up false"),
        (generator, dict(normG="batch"), {},
            "batch normalisation, but --normG instance .*give --normG batch"),
        (generator, dict(normG="none"), {}, "no normalisation.*give --normG none"),
        (generator, dict(no_dropout=False), {},
            "has dropout, but --no_dropout true .*give --no_dropout false"),
        (generator, dict(netG="unet_128"), {}, "holds a U-Net generator .*asked for is a ResNet generator"),
        (generator, dict(netG="unet_128"), dict(netG="unet_256"),
            "U-Net for multiples of 128 .*give --netG unet_128"),
        (generator, dict(ngf=4, normG="batch"), {}, "--ngf 4; .*--normG batch"),
        (heads, dict(nce_layers=[0, 4]), {},
            "has 2 heads, for layers of 3, 4 channels, but --nce_layers with 3"),
        (heads, dict(netF_nc=8), {}, "heads of width 8, but --netF_nc 4"),
    ],
)  # fmt: skip
def test_another_architecture_is_told_by_its_option(tmp_path, build, saved, asked, message):
    save_weights(build(**saved), tmp_path / "x.pth")
    with pytest.raises(UserError, match=message) as error:
        load_weights(build(**asked), tmp_path / "x.pth", options(**asked))
    assert (
        "x.pth does not fit the network of the run run: " in str(error.value) and len(str(error.value)) < 500
    )


@pytest.mark.parametrize(
    "saved, message",
    [
        (dict(netD="n_layers", n_layers_D=4),
            "4 halvings, but --netD basic asks for 3 halvings: give --netD n_layers --n_layers_D 4"),
        (dict(ndf=4), "give --ndf 4"),
        (dict(normD="batch"), "give --normD batch"),
        (dict(no_antialias=True), "give --no_antialias true"),
        (dict(netD="pixel"), "holds a per-pixel discriminator"),
    ],
)  # fmt: skip
def test_another_discriminator_is_told_by_its_option(tmp_path, saved, message):
    save_weights(build_discriminator(options(**saved)), tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        load_weights(build_discriminator(options()), tmp_path / "x.pth")


def test_every_pair_of_architectures_differs_in_words():
    found = [architecture(generator(**changes).state_dict()) for changes in [{}, *GENERATORS]]
    for number, first in enumerate(found):
        assert not differences(first, first)
        assert all(differences(first, second) for second in found[:number])


def test_what_no_option_explains_is_one_key_with_both_shapes(tmp_path):
    state = generator().state_dict()
    torch.save({**state, "model.4.bias": torch.zeros(7)}, tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"model.4.bias has shape \(7,\) in the file and has shape \(4,\) in the network"
    ):
        load_weights(generator(), tmp_path / "x.pth")
    del state["model.8.bias"]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"model.8.bias is missing in the file and has shape \(8,\)"):
        load_weights(generator(), tmp_path / "x.pth")


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
        (lambda t: b"", "is empty; download or copy it again"),
        (lambda t: b"\n<!DOCTYPE html><html>", "is a web page .*download the file itself"),
        (lambda t: b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (lambda t: b"\x89PNG\r\n\x1a\n" + bytes(50), "no file of torch.save .*PNG"),
        (lambda t: archive(t, generator().state_dict())[:5000], "cut short or damaged"),
        (lambda t: archive(t, Bomb()), "pickled code or objects, which are never executed"),
        (lambda t: pickle.dumps(Bomb()), "pickled code or objects"),
        (lambda t: archive(t, generator()), "pickled code or objects"),
        (lambda t: archive(t, {"state_dict": {}, "epoch": 3}),
            "a dict of state_dict, epoch, not the bare state dict"),
        (lambda t: archive(t, [torch.zeros(1)]), "holds a list, not"),
        (lambda t: archive(t, {}), "no weights at all"),
        (lambda t: archive(t, {"fc.weight": torch.zeros(1)}), "holds no network of this project"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_named_and_never_executed(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "latest_net_G.pth"
    path.write_bytes(content(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        load_weights(generator(), path)
    assert str(path) in str(error.value)
    assert not (tmp_path / "exploded").exists()


def test_one_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "latest_net_G.pth"
    save_weights(generator(), path)
    read_weights(path)
    flip_a_bit(path)
    torch.load(path, weights_only=True)  # torch itself takes the number as it is
    with pytest.raises(UserError, match="latest_net_G.pth: it is cut short or damaged"):
        read_weights(path)


def test_files_older_than_archives_still_load(tmp_path):
    """torch before 1.6 wrote them, without checksums."""
    net, path = generator(), tmp_path / "latest_net_G.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    assert read_weights(path).keys() == net.state_dict().keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.index_fill(0, torch.tensor([1]), float("nan")), "not finite"),
        (lambda w: w.half() * 1e9, "not finite"),
        (lambda w: w.to_sparse(), "a sparse tensor"),
        (lambda w: torch.quantize_per_tensor(w.detach(), 0.1, 0, torch.qint8), "a quantised tensor"),
        (lambda w: w.to("meta"), r"a meta \(without data\) tensor"),
        (lambda w: w.to(torch.complex64), "a complex tensor"),
    ],
)
def test_numbers_that_no_network_works_with_are_named(tmp_path, change, message):
    state = generator().state_dict()
    state["model.4.weight"] = change(state["model.4.weight"])
    torch.save(state, tmp_path / "latest_net_G.pth")
    with pytest.raises(UserError, match=f"model.4.weight .*{message}|model.4.weight is {message}"):
        load_weights(generator(), tmp_path / "latest_net_G.pth")


def test_a_missing_checkpoint_lists_those_there_are(tmp_path):
    run = tmp_path / "horses" / "first"
    run.mkdir(parents=True)
    with pytest.raises(UserError, match="no run has saved weights there"):
        checkpoint_file(tmp_path, "zebras", "latest")
    with pytest.raises(UserError, match="saved no weights yet"):
        checkpoint_file(tmp_path, "horses/first", "latest")
    for epoch in ("10", "5", "latest"):
        save_weights(generator(), run / f"{epoch}_net_G.pth")
    assert checkpoint_file(tmp_path, "horses/first", "10") == run / "10_net_G.pth"
    with pytest.raises(UserError, match="7_net_G.pth: --epoch can be 5, 10, latest"):
        checkpoint_file(tmp_path, "horses/first", "7")
    with pytest.raises(UserError, match="--name can be horses/first"):
        checkpoint_file(tmp_path, "zebras", "latest")
    with pytest.raises(UserError, match="there is no weights file .*nothing.pth"):
        read_weights(tmp_path / "nothing.pth")
