"""The fused kernels against the layers one by one: in Triton's interpreter, and on a GPU if there is one.

Functions passed to `run` return tensors by name; they are at module level, for another process to import.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import create_model
from models.attention import GuidedResnetGenerator, PostHocAttention, TrainableAttention
from models.discriminator import NLayerDiscriminator
from models.generator import ResnetGenerator
from models.layers import BlurDownsample, BlurUpsample, InstanceNorm
from models.speed import fused, triton_support
from models.speed.fused_kernels import Tail, norm_act_resample
from models.speed.thin_convolution import convolve
from models.speed.triton_support import Trials
from options.train_options import TrainOptions

DEFAULTS = {"norm": True, "slope": 1.0, "tail": Tail.NONE, "border": 0, "keep": False}
CASES = {
    "inside a residual block": {"slope": 0.0, "tail": Tail.PAD, "border": 1},
    "between residual blocks": {"residual": True, "tail": Tail.PAD, "border": 1, "keep": True},
    "before the last convolution": {"slope": 0.0, "tail": Tail.PAD, "border": 3},
    "downsampling behind a tap": {"bias": True, "slope": 0.0, "tail": Tail.DOWN},
    "downsampling in D's first block": {"bias": True, "norm": False, "slope": 0.2, "tail": Tail.DOWN},
    "upsampling behind the last residual block": {"residual": True, "tail": Tail.UP},
    "a norm alone": {},
    "a border alone": {"norm": False, "tail": Tail.PAD, "border": 2},
}
# one has several tiles, one several blocks of channels
SHAPES = [(2, 6, 9, 12), (1, 70, 6, 6), (1, 2, 70, 65)]


def layer_by_layer(x, bias, residual, norm, slope, tail, border, keep):
    x = x if bias is None else x + bias[:, None, None]
    v = F.layer_norm(x, x.shape[2:], eps=1e-5) if norm else x
    y = torch.maximum(v, slope * v) if slope != 1 else v
    y = y if residual is None else y + residual
    tails = {
        Tail.NONE: nn.Identity(),
        Tail.PAD: nn.ReflectionPad2d(border),
        Tail.DOWN: BlurDownsample(x.shape[1]),
        Tail.UP: BlurUpsample(x.shape[1]),
    }
    return (x if norm and bias is not None else None), (y if keep else None), tails[tail].to(x)(y)


def results_and_gradients(x, settings, function=norm_act_resample, dtype=torch.float32):
    """What `function` makes of x, and the gradients of a weighted sum of it."""
    settings = {**DEFAULTS, **settings}
    generator = torch.Generator().manual_seed(1)
    given = {"x": x.cpu()}
    for name, shape in (("bias", x.shape[1:2]), ("residual", x.shape)):
        if settings.pop(name, False):
            given[name] = torch.randn(shape, generator=generator)
    given = {name: value.to(x.device, dtype).requires_grad_() for name, value in given.items()}
    x = given["x"].contiguous(memory_format=torch.channels_last) * 1  # a leaf may not be overwritten
    outputs = function(x, bias=given.get("bias"), residual=given.get("residual"), **settings)
    outputs = dict(zip(("x + bias", "y", "t"), outputs, strict=True))
    if not settings["keep"]:
        del outputs["y"]  # the same as t where there is no tail
    outputs = {name: value for name, value in outputs.items() if value is not None}
    weights = [torch.randn(value.shape, generator=generator).to(value) for value in outputs.values()]
    sum((value * weight).sum() for value, weight in zip(outputs.values(), weights, strict=True)).backward()
    gradients = {f"gradient of {name}": value.grad for name, value in given.items()}
    return {name: value.detach() for name, value in (outputs | gradients).items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_those_of_the_layers(run, case, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 2
    found = run(results_and_gradients, x, CASES[case])
    expected = results_and_gradients(x, CASES[case], layer_by_layer, torch.float64)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        off = (found[name].double() - value).abs() - 1e-4 * value.abs()
        assert off.max() < 2e-5, name


def test_statistics_stand_a_large_mean(run):
    x = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)) + 1000
    found = run(results_and_gradients, x, {})["t"]
    expected = F.layer_norm(x.double(), x.shape[2:], eps=1e-5)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)


def of_bfloat16(x):
    return norm_act_resample(x.bfloat16(), slope=0.0, tail=Tail.PAD, border=1)[2]


def test_bfloat16_is_rounded_once(run):
    x = torch.randn(1, 8, 20, 20, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    found = run(of_bfloat16, x)
    exact = F.pad(F.layer_norm(x, x.shape[2:], eps=1e-5).relu(), (1,) * 4, mode="reflect")
    assert found.dtype == torch.bfloat16
    # half an ulp on a GPU; the interpreter cuts off, which is up to a whole one
    assert ((found.float() - exact).abs() <= 2**-7 * exact.abs() + 1e-6).all()


def thin(x, inputs, outputs, side, padding, one_by_one):
    """A convolution and its gradients, by `convolve` or by PyTorch."""
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, side, padding=padding, bias=False).to(x)
    x = x.clone().requires_grad_()
    y = layer(x) if one_by_one else convolve(layer, x.contiguous(memory_format=torch.channels_last))
    (y * torch.linspace(0, 1, y.numel()).view(y.shape).to(y)).sum().backward()
    return {"y": y.detach(), "gradient of x": x.grad, "gradient of the weight": layer.weight.grad}


@pytest.mark.parametrize(
    "inputs, outputs, side, padding",
    [(3, 10, 7, 0), (10, 3, 7, 0), (3, 9, 4, 1), (9, 1, 5, 2), (8, 8, 7, 0), (3, 3, 3, 1)],
)
def test_thin_convolutions_are_convolutions(run, inputs, outputs, side, padding):
    x = torch.randn(2, inputs, 11, 13, generator=torch.Generator().manual_seed(0))
    found = run(thin, x, inputs, outputs, side, padding, False)
    for name, value in thin(x, inputs, outputs, side, padding, True).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


NETWORKS = {
    "a generator": (ResnetGenerator, {"ngf": 4, "n_blocks": 3}, [0, 4, 8, 12, 14]),
    "taps everywhere": (ResnetGenerator, {"ngf": 4, "n_blocks": 2}, list(range(22))),
    "strided and transposed convolutions": (
        ResnetGenerator, {"ngf": 4, "n_blocks": 2, "antialias": False, "antialias_up": False}, [0, 3, 6, 10],
    ),
    "batch norm": (ResnetGenerator, {"ngf": 4, "n_blocks": 2, "norm": "batch"}, [0, 4, 8, 12]),
    "a discriminator": (NLayerDiscriminator, {"ndf": 4}, None),
    "with post hoc attention": (PostHocAttention, {"ndf": 4, "antialias": True}, None),
    "with trainable attention": (TrainableAttention, {"ndf": 4}, None),
    "guided inside": (GuidedResnetGenerator, {"ngf": 2, "n_blocks": 1, "stage": "F2"}, None),
}  # fmt: skip


def network(x, name, is_fused, seed=0):
    """A network's outputs and gradients, its layers taken together or one by one."""
    torch.backends.cudnn.allow_tf32 = False  # else cuDNN rounds what convolutions of float32 read
    kind, settings, taps = NETWORKS[name]
    torch.manual_seed(seed)
    net = kind(**settings)
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    net.to(x)
    if is_fused:
        net.run_layers = fused.run
    x = x.clone().requires_grad_()
    outputs = [net(x)] if taps is None else [net(x, taps)[0], *net.encode(x, taps)]
    torch.manual_seed(seed)
    sum((y * torch.randn(y.shape).to(y)).sum() for y in outputs).backward()
    found = {f"output {number}": y.detach() for number, y in enumerate(outputs)} | {"gradient of x": x.grad}
    return found | {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()}


def assert_close_to(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        off = (found[key].double() - value).abs().max()
        # A ReLU may switch on its input's last bit; a bias before a norm has only rounding as gradient.
        assert off <= 1e-3 * value.abs().max() + 1e-3 * ("bias" in key), (key, off)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same_function(run, name):
    x = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    assert_close_to(run(network, x, name, True), network(x.double(), name, False))


@pytest.mark.parametrize("gan_mode, fused_D", [("lsgan", True), ("wgangp", False)])
def test_networks_are_fused_where_kernels_work(monkeypatch, gan_mode, fused_D):
    monkeypatch.setattr(triton_support, "works", lambda device: True)
    small = f"--gpu_ids -1 --model cut --ngf 4 --ndf 4 --netF_nc 16 --gan_mode {gan_mode}"
    for words, expected in (("", False), ("--channels_last", True)):
        model = create_model(TrainOptions().parse(f"{small} {words}".split()))
        assert (model.netG.run_layers is fused.run) is expected
        assert (model.netD.run_layers is fused.run) is (expected and fused_D)


def test_a_kernel_is_tried_once_for_each_variant_and_given_up_once():
    trials, calls = Trials(), []

    def fails(message):
        raise RuntimeError(message)

    for variant in (1, 1, 2):
        assert trials.allows("fine", (variant,), lambda: calls.append(1))
    assert len(calls) == 2
    with pytest.warns(RuntimeWarning, match="kernels for ranking do not work.*Error: PTX needs") as caught:
        for name, variant in (("ranking", 1), ("ranking", 2), ("layers", 1)):  # once for each reason
            assert not trials.allows(name, (variant,), lambda: fails("PTX needs a newer driver"))
    assert len(caught) == 1
    with pytest.raises(RuntimeError, match="out of memory"):  # no fault of the kernel
        trials.allows("fine", (3,), lambda: fails("CUDA out of memory."))
    assert trials.allows("fine", (3,), lambda: None)


def test_a_tapped_convolution_may_have_no_bias():
    """What the kernels do not return, since they add nothing to it, is what they were given."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU())
    x = torch.randn(1, 3, 8, 8)
    output, (tap,) = fused.run(layers, x, [0])
    torch.testing.assert_close(tap, layers[0](x))
    torch.testing.assert_close(output, layers(x))


def test_sizes_that_kernels_cannot_take_are_left_to_the_layers():
    pieces = [fused.Piece(InstanceNorm(), None), fused.Piece(BlurDownsample(2), None)]
    assert fused.find_group(pieces, 0, torch.zeros(1, 2, 8, 8)).settings["tail"] == Tail.DOWN
    flat = fused.find_group(pieces, 0, torch.zeros(1, 2, 1, 8))  # nothing to reflect
    assert flat.settings["tail"] == Tail.NONE
    assert fused.find_group(pieces, 0, torch.zeros(2**16, 1, 1, 1)) is None
    assert fused.find_group(pieces, 0, torch.zeros(1, 1, 1, 1).expand(1, 2, 2**15, 2**15)) is None
    steep = [fused.Piece(InstanceNorm(), None), fused.Piece(nn.LeakyReLU(2.0), None)]
    assert fused.find_group(steep, 0, torch.zeros(1, 2, 8, 8)) is None


def state_after_a_step(x, state=None):
    """Of CUT, from a state on or, with fused networks, from the start."""
    words = "--gpu_ids -1 --model cut --netG resnet_4blocks --nce_layers 0,4,8 --ngf 4 --ndf 4 --netF_nc 8"
    torch.manual_seed(0)
    model = create_model(TrainOptions().parse(f"{words} --num_patches 8".split()))
    if state is None:
        model.netG.run_layers = model.netD.run_layers = fused.run
    else:
        model.load_training_state(state)
    model.set_input({"A": x, "B": x.flip(3)})
    model.optimize_parameters()
    return model.training_state()


def test_a_run_goes_on_without_the_kernels(interpreter):
    """Biases before a norm have no gradient in a fused step, so the optimiser has no state of them either."""
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    state = interpreter.submit(state_after_a_step, x).result()
    moments = state["optimizers"]["G"]["state"]
    assert 0 < len(moments) < len(state["optimizers"]["G"]["param_groups"][0]["params"])
    after = state_after_a_step(x, state)["optimizers"]["G"]["state"]
    assert len(after) > len(moments)
    assert all(after[number]["step"] == 2 for number in moments)
