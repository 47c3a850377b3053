"""MUNIT's networks and steps against the released numbers; runs, styles, directions, released files."""

import ast
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from golden import load_baseline, under
from PIL import Image
from textbook import assert_refused, close, images, model_of, released_steps, step
from trained_run import command_of, draw_set, make_run, picture

from models import munit_networks
from models.inference import load_generator
from models.munit_networks import AdaIN, AdaINGenerator, LayerNorm, MultiScaleDiscriminator, StyledTranslator
from util.image_files import open_rgb
from util.weight_files import read_tensors

TINY = "--model munit --gpu_ids -1 --ngf 4 --ndf 4 --mlp_dim 8 --n_res 1 --n_layer 2 --num_scales 2"
TINY += " --crop_size 32"


@contextmanager
def given_styles(*styles: torch.Tensor):
    """Styles to hand out in place of random ones, in this order."""
    given = iter(styles)
    with patch.object(munit_networks, "random_styles", lambda *_: next(given)):
        yield
    assert next(given, None) is None  # all were drawn


# Networks


@pytest.fixture(scope="module")
def forward():
    """The released networks' numbers, and a generator and a discriminator of their weights, in float64."""
    golden = load_baseline("munit_forward")
    settings = ast.literal_eval(golden["meta.settings"])
    sizes = {name: settings["gen"][name] for name in ("dim", "mlp_dim", "style_dim", "n_downsample", "n_res")}
    dis = settings["dis"]
    nets = {
        "G": AdaINGenerator(3, **sizes).double(),
        "D": MultiScaleDiscriminator(3, dis["dim"], dis["n_layer"], dis["num_scales"]).double(),
    }
    for name, net in nets.items():
        weights = under(golden, f"before.{name}.")
        assert list(net.state_dict()) == list(weights)  # a released optimizer counts them
        net.load_state_dict(weights)
    return golden, nets["G"], nets["D"]


@torch.no_grad()
def test_released_networks(forward):
    golden, net, netD = forward
    content, style = net.encode(golden["x"])
    found = {
        "content": content,
        "style_of_x": style,
        "adain_params": net.mlp(golden["style"].flatten(1)),
        "decoded": net.decode(content, golden["style"]),
        "reconstruction": net.decode(content, style),
        "downsampled": netD.downsample(golden["x"]),
        **{f"dis_scale{scale}": scores for scale, scores in enumerate(netD(golden["x"]))},
    }
    for name, value in found.items():
        close(value, golden[name])


def layer_norm(x, gamma, beta):
    net = LayerNorm(len(gamma))
    return torch.func.functional_call(net, {"gamma": gamma, "beta": beta}, (x,))


# the norms, and the shape of their arguments
NORMS = {layer_norm: lambda batch: (3,), AdaIN(): lambda batch: (batch, 3)}
norms = pytest.mark.parametrize("norm", NORMS, ids=["layer", "adain"])


def test_released_norms(forward):
    golden, *_ = forward
    close(layer_norm(golden["ln.in"], golden["ln.gamma"], golden["ln.beta"]), golden["ln.out"])
    affine = golden["adain.params_shift_then_scale"].chunk(2, 1)
    close(AdaIN()(golden["adain.in"], *affine), golden["adain.out"])


@norms
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_by_finite_differences(norm, batch):
    """Whatever the strides: at a batch of one, PyTorch's own instance norm returns wrong gradients."""
    torch.manual_seed(0)
    affine = [torch.randn(NORMS[norm](batch)).double().requires_grad_() for _ in range(2)]
    x = torch.randn(batch, 3, 4, 5, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert torch.autograd.gradcheck(norm, [x.to(memory_format=layout).requires_grad_(), *affine])


@norms
def test_constant_images_have_finite_gradients(norm):
    x = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    affine = [torch.tensor([0.5, 1.0, 2.0]).view(NORMS[norm](1)).requires_grad_() for _ in range(2)]
    y = norm(x, *affine)
    torch.testing.assert_close(y, torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1, 1).expand_as(y))
    y.square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *affine))


@norms
def test_half_precision_statistics_are_float32(norm):
    x = (torch.randn(2, 3, 8, 8) + 100).bfloat16()
    affine = torch.ones(NORMS[norm](2)), torch.zeros(NORMS[norm](2))
    assert torch.equal(norm(x, *affine), norm(x.float(), *affine))


def test_two_released_steps(float64):
    """Every loss, gradient and image of two released steps, and an image after them."""
    golden = load_baseline("munit_step")
    settings = ast.literal_eval(golden["meta.settings"])
    gen, dis = settings["gen"], settings["dis"]
    words = {"ngf": gen["dim"], "ndf": dis["dim"]}
    words |= {name: dis[name] for name in ("n_layer", "num_scales")}
    words |= {name: gen[name] for name in ("mlp_dim", "style_dim", "n_downsample", "n_res")}
    names = "lr beta1 beta2 weight_decay gan_w recon_x_w recon_s_w recon_c_w recon_x_cyc_w".split()
    words |= {name: settings[name] for name in names}
    model = model_of("--model munit --gpu_ids -1", *(f"--{name} {value}" for name, value in words.items()))
    batches = [{domain: golden[f"step{n}.x_{domain.lower()}"] for domain in "AB"} for n in (1, 2)]
    drawn = ("dis_s_a", "dis_s_b", "gen_s_a", "gen_s_b")
    with given_styles(*(golden[f"step{n}.{name}"] for n in (1, 2) for name in drawn)):
        for number in released_steps(model, golden, batches):
            assert len(model.losses) == 14
            for name, image in {"recon_B": "x_b_recon", "fake_B": "x_ab", "cycle_B": "x_bab"}.items():
                close(model.results[name], golden[f"step{number}.{image}"])
    x_ab = model.translator()(golden["step1.x_a"], golden["step1.gen_s_b"].flatten(1))
    close(x_ab, golden["final.x_ab"])


def test_the_rate_decays_one_iteration_early():
    """As in the released code, whose schedule is stepped before an iteration's updates."""
    model, rates = model_of(TINY, "--lr_decay_iters 3"), []
    for _ in range(6):
        rates.append(model.learning_rate / 1e-4)
        step(model, images())
    assert rates == pytest.approx([1, 1, 0.5, 0.5, 0.5, 0.25])


@pytest.mark.parametrize(
    "words, told",
    {
        "--gan_mode wgangp": "give lsgan or vanilla",
        "--input_nc 1": "to be the same",
        "--crop_size 30 --load_size 30": "the generator needs a multiple of 4.* Take 32",
        "--n_layer 4 --num_scales 3 --crop_size 56": "the discriminator at least 61 pixels. Take 64",
    }.items(),
)
def test_what_cannot_be_is_refused(words, told):
    assert_refused(f"{TINY} {words}", told)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return draw_set(tmp_path_factory.mktemp("set"), (44, 40), testA=3, testB=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    make_run(
        folder,
        *"--model munit --mlp_dim 8 --n_res 1 --n_layer 2 --num_scales 2 --style_dim 3".split(),
        networks="gd",
    )
    return folder


@pytest.fixture
def command(runs, dataset, tmp_path):
    return command_of(runs, tmp_path / "results", "--name", "run", "--dataroot", dataset)


@pytest.fixture
def translate(runs):
    return load_generator("run", runs, device="cpu")


def images_of(results, label, folder="test_latest") -> dict[str, Image.Image]:
    folder = results / "run" / folder / "images" / label
    return {path.name: open_rgb(path) for path in sorted(folder.glob("*.png"))}


def assert_alike(first, second) -> None:
    """Equal but for rounding to whole values."""
    assert np.abs(np.asarray(first).astype(int) - np.asarray(second)).max() <= 1


def test_one_style_for_the_whole_test_set_or_a_row_of_styles(command, translate, tmp_path):
    results = tmp_path / "results"
    assert command() == 0
    fakes, sources = images_of(results, "fake_B"), images_of(results, "real_A")
    assert list(fakes) == ["A0.png", "A1.png", "A2.png"]
    for name, fake in fakes.items():
        assert_alike(fake, translate(sources[name], style=0))
    assert command("--num_styles", 2, "--style_seed", 1) == 0
    assert not images_of(results, "fake_B")  # of the earlier call
    rows = [images_of(results, f"fake_B_style{number}") for number in range(2)]
    for style, fakes in zip(translate.draw_styles(2, seed=1), rows, strict=True):
        for name, fake in fakes.items():
            assert_alike(fake, translate(sources[name], style=style))
    assert not np.array_equal(rows[0]["A0.png"], rows[1]["A0.png"])


def test_the_style_of_an_image(command, translate, dataset, tmp_path):
    example = dataset / "testB" / "B1.png"
    assert command("--style_image", example) == 0
    source = images_of(tmp_path / "results", "real_A")["A0.png"]
    scaled = Image.open(example).resize((35, 32), Image.Resampling.BICUBIC)
    expected = translate(source, style=scaled)
    assert_alike(images_of(tmp_path / "results", "fake_B")["A0.png"], expected)
    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)[None] / 127.5 - 1
    pixels = pixels[:, :, :, [*range(35), 33]]  # to a multiple of 4, by reflection
    with torch.no_grad():
        style = translate.net.target.encode(pixels)[1].flatten()
    torch.testing.assert_close(translate.with_style(scaled).variant, style, rtol=1e-4, atol=1e-5)


def test_styles_of_the_python_api(translate):
    image = picture((40, 24))
    assert_alike(translate(image, style=7), translate(image, style=translate.draw_styles(1, seed=7)[0]))
    assert_alike(translate(image, style=[1.0, -2.0, 0.5]), translate.with_style([1.0, -2.0, 0.5])(image))
    assert_alike(translate(image), translate(image, style=0))  # with_style changes no translator
    for wrong in ([1.0, 2.0], [1.0, 2.0, float("nan")]):
        with pytest.raises(ValueError, match="3 finite numbers, a seed or an image"):
            translate(image, style=wrong)


def test_both_directions(command, runs, tmp_path):
    assert command("--direction", "BtoA") == 0
    back = load_generator("run", runs, device="cpu", direction="BtoA")
    results = tmp_path / "results"
    fakes, sources = (images_of(results, label, "test_latest_BtoA") for label in ("fake_B", "real_A"))
    assert list(fakes) == ["B0.png", "B1.png"]
    for name, fake in fakes.items():
        assert_alike(fake, back(sources[name]))


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_released_generators_load(runs, tmp_path, direction):
    """Both in one file, as MUNIT's released code saves them, with the unused buffers of AdaIN."""
    states = {}
    for part in "ab":
        state = states[part] = read_tensors(runs / "run" / f"latest_net_gen_{part}.pth")
        for key in [key for key in state if key.startswith("dec.model.0.") and key.endswith("conv.bias")]:
            norm = key.removesuffix("conv.bias") + "norm."
            state |= {f"{norm}running_{of}": torch.zeros_like(state[key]) for of in ("mean", "var")}
    torch.save(states, tmp_path / "gen_01000000.pt")
    image = picture((40, 32))
    expected = load_generator("run", runs, device="cpu", direction=direction)(image, style=4)
    found = load_generator(tmp_path / "gen_01000000.pt", device="cpu", direction=direction)
    assert isinstance(found.net, StyledTranslator) and found.multiple == 4
    assert_alike(found(image, style=4), expected)
