"""Weights cast all at once, and their gradients on a stream of their own: the same step in bfloat16."""

from __future__ import annotations

import copy
import weakref
from contextlib import nullcontext

import pytest
import torch
from conftest import on_gpu
from test_acceleration import LSESIM, batches, losses_of, tiny_model, weights
from textbook import run_steps
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.generator import ResnetGenerator
from models.speed import fused, weight_gradients
from models.speed.shared_casts import CastGroup, SharedCasts
from models.speed.weight_gradients import MOST_BEHIND, WeightGradientStream

BF16 = "--precision bf16 --channels_last"
CASTS, STREAM = (f"{BF16} --experimental {name}" for name in ("shared_casts", "weight_gradient_stream"))


def steps_of(words, count=2, size=(32, 32), gpu=-1):
    """Losses and gradients of a tiny model's steps."""
    model = tiny_model(words, gpu)
    torch.manual_seed(2)
    return list(run_steps(model, model, batches(count, size)))


def assert_same(found, expected):
    """Losses and gradients are equal bit for bit."""
    for (losses, gradients), (expected_losses, expected_gradients) in zip(found, expected, strict=True):
        assert losses == expected_losses
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in expected_gradients.items():
            assert torch.equal(gradients[name], gradient), name


# --- the step


@pytest.mark.parametrize(
    "words", ["", "--QS_mode local", "--model cut --gan_mode wgangp", "--model dcl --no_antialias_up"]
)
def test_losses_and_gradients_are_the_same_bit_for_bit(words):
    plain = steps_of(f"{words} {BF16}")
    assert_same(steps_of(f"{words} {CASTS}"), plain)
    assert_same(steps_of(f"{words} {STREAM}"), plain)


@pytest.mark.parametrize("words, first", [("--model cycle_gan --pool_size 2", "G_"), (LSESIM, "F")])
def test_where_autocast_sums_two_uses_in_bfloat16_gradients_are_near(words, first):
    """Those of the networks `first`, which are updated first."""
    ((_, plain),) = steps_of(f"{words} {BF16}", 1)
    ((_, casts),) = steps_of(f"{words} {CASTS}", 1)
    ((_, stream),) = steps_of(f"{words} {STREAM}", 1)
    names = [name for name in plain if name.startswith(first) and name.endswith("weight")]
    assert names and not all(torch.equal(casts[name], plain[name]) for name in names)
    for name in names:
        assert (casts[name] - plain[name]).abs().max() <= 2**-6 * plain[name].abs().max(), name
        assert torch.equal(stream[name], casts[name]), name


class CountCasts(TorchDispatchMode):
    """Counts casts of some parameters, one by one and all at once."""

    def __init__(self, parameters):
        super().__init__()
        self.parameters, self.single, self.joint = {id(p) for p in parameters}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.single += function is torch.ops.aten._to_copy.default and id(args[0]) in self.parameters
        self.joint += function is torch.ops.aten._foreach_copy_.default
        return function(*args, **(kwargs or {}))


def test_a_step_casts_three_times_and_casts_gradients_back_three_times():
    """G and F, D, D after its update; two uses of a weight of G, one of D's."""
    counts = []
    for words in (BF16, CASTS):
        model = tiny_model(f"--model cut {words}")
        model.set_input(batches(1)[0])
        with CountCasts([p for net in model.networks.values() for p in net.parameters()]) as count:
            model.optimize_parameters()
        counts.append((count.single, count.joint))
    (single, none), (no_more, joint) = counts
    assert single > 50 and none == no_more == 0 and joint == 6


def test_only_bfloat16_is_cast_and_compiling_is_refused(capsys):
    assert not tiny_model("--experimental all").accelerator.casts.groups
    with pytest.raises(SystemExit):
        tiny_model(f"--compile {STREAM}")
    assert "weight_gradient_stream: give --compile false" in capsys.readouterr().err


def test_a_run_goes_on_with_and_without():
    plain, shared = tiny_model(f"--model cut {BF16}"), tiny_model(f"--model cut {STREAM}")
    first, second, third = batches(3)
    losses_of(plain, [first])
    shared.load_training_state(copy.deepcopy(plain.training_state()))
    assert losses_of(shared, [second]) == losses_of(plain, [second])
    plain.load_training_state(copy.deepcopy(shared.training_state()))
    assert losses_of(plain, [third]) == losses_of(shared, [third])


def test_a_step_that_is_not_finite_changes_no_weight():
    model = tiny_model(f"--model cut {STREAM}")
    losses_of(model, batches(1))
    before = weights(model)
    (batch,) = batches(1)
    batch["A"][0, 0, 0, 0] = float("nan")
    losses_of(model, [batch])
    assert all(torch.equal(p, q) for p, q in zip(weights(model), before, strict=True))


def fused_network(x, beside=None):
    """Output and gradients of a small generator in bfloat16, its layers in fused kernels; None: no casts."""
    torch.manual_seed(0)
    net = ResnetGenerator(ngf=4, n_blocks=1).to(memory_format=torch.channels_last)
    net.run_layers = fused.run
    group, casts = (None, nullcontext()) if beside is None else casts_of(net, beside)
    with casts, bf16():
        y = net(x)
        y.square().sum().backward()
        assert group is None or group.link is not None  # casts were used
    return {"y": y.detach(), **{name: p.grad for name, p in net.named_parameters() if p.grad is not None}}


def test_layers_in_fused_kernels_take_the_casts(interpreter):
    x = torch.randn(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    plain, *shared = (interpreter.submit(fused_network, x, beside).result() for beside in (None, False, True))
    for found in shared:
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[name], value) for name, value in plain.items())


# --- one layer


def casts_of(net, beside):
    group = CastGroup([net], torch.device("cpu"), beside)
    return group, SharedCasts([group], torch.device("cpu"))


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("beside", [False, True])
def test_gradients_of_all_uses_are_summed_in_float32(beside):
    layer = nn.Conv2d(3, 4, 3, bias=False)
    _, casts = casts_of(layer, beside)
    images = torch.randn(3, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros_like(layer.weight)
    for x in images:
        with bf16():
            layer(x).square().sum().backward()
        expected += layer.weight.grad
        layer.weight.grad = None
    with casts, bf16():
        sum(layer(x).square().sum() for x in images).backward()
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-6, atol=1e-6)


def test_casts_follow_an_update_and_leave_float32_regions_alone():
    layer = nn.Conv2d(3, 4, 3, bias=False)
    group, casts = casts_of(layer, False)
    x = torch.randn(1, 3, 8, 8)
    with casts, bf16():
        layer(x)
        with torch.no_grad():
            layer.weight += 1
        group.forget()  # as the accelerator has it after the optimiser's step
        assert torch.equal(layer(x), nn.functional.conv2d(x, layer.weight.bfloat16()))
        with torch.autocast("cpu", enabled=False):
            assert layer(x).dtype == torch.float32
    layer.weight.data.zero_()
    with casts, bf16():
        assert not layer(x).any()


def test_a_frozen_layer_passes_gradients_on_and_has_none():
    layer = nn.Conv2d(3, 4, 3)
    _, casts = casts_of(layer, True)
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    layer.requires_grad_(False)
    with casts, bf16():
        layer(x).sum().backward()
        assert layer.weight.grad is None and x.grad.any()
        layer.requires_grad_(True)
        layer(x).sum().backward()
    assert layer.weight.grad.any()


def test_a_gradient_of_another_layout_is_taken():
    layer = nn.Linear(4, 4, bias=False)
    group, casts = casts_of(layer, False)
    transposed = torch.arange(16.0).view(4, 4).t()
    with casts:
        group.cast(0).backward(transposed.bfloat16())
    assert torch.equal(layer.weight.grad, transposed) and layer.weight.grad.is_contiguous()


# --- the second stream


class FakeStream:
    """Notes what is waited for."""

    def __init__(self):
        self.waited, self.recorded = [], 0

    def record_event(self):
        self.recorded += 1
        return self.recorded

    def wait_event(self, event):
        self.waited.append(event)


class FakeSide:
    """A `SideStream` that exists."""

    def __init__(self, device):
        self.device, self.stream = device, FakeStream()

    def __enter__(self):
        pass

    def __exit__(self, *error):
        pass


def test_what_the_second_stream_reads_lives_until_the_first_has_waited(monkeypatch):
    main = FakeStream()
    monkeypatch.setattr(weight_gradients, "SideStream", FakeSide)
    monkeypatch.setattr(weight_gradients, "current_stream", lambda device: main)
    stream, alive = WeightGradientStream(torch.device("cpu")), []
    for number in range(MOST_BEHIND + 2):
        x = torch.zeros(1)
        alive.append(weakref.ref(x))
        stream.compute(lambda x=x: x + 1, (x,))
        del x
        assert main.waited == list(range(1, number + 2 - MOST_BEHIND))
        assert [ref() is not None for ref in alive] == [
            event + 1 not in main.waited for event in range(number + 1)
        ]
    stream.release()
    assert main.waited == list(range(1, MOST_BEHIND + 3)) and not any(ref() is not None for ref in alive)


@on_gpu
def test_gpu_gradients_on_a_stream_of_their_own_are_those_on_one():
    words = "--model cut --ngf 64 --ndf 64 --netG resnet_9blocks"
    for size in ((128, 128), (256, 192)):
        plain, shared = (steps_of(f"{words} {own}", 1, size, gpu=0) for own in (BF16, STREAM))
        for (losses, gradients), (expected_losses, expected) in zip(shared, plain, strict=True):
            assert losses == pytest.approx(expected_losses, rel=1e-2, abs=1e-3)
            for name, gradient in expected.items():
                if name.endswith("weight"):
                    assert (gradients[name] - gradient).norm() <= 0.05 * gradient.norm(), name
