"""Dependent launch of the Triton kernels: what they compile to without a GPU, and their results on one."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import on_gpu

from models import create_model
from models.speed import qs_kernels, triton_support
from models.speed.fused_kernels import Tail, norm_act_resample
from models.speed.thin_convolution import _collect_kernel, _move, _spread_kernel
from models.speed.triton_support import launches
from options.train_options import TrainOptions

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    triton_support.gdc_wait is None, reason="needs a Triton that has dependent launch"
)
KERNELS = {
    "_moments_kernel", "_merge_kernel", "_sum_kernel", "_apply_kernel", "_gather_gradient_kernel",
    "_apply_gradient_kernel", "_spread_kernel", "_collect_kernel", "_global_states", "_merge_splits",
    "_local_log_entropy",
}  # fmt: skip
WAIT, ALLOW = "griddepcontrol.wait", "griddepcontrol.launch_dependents"


@pytest.fixture
def compiled(monkeypatch):
    """The PTX of each kernel launched, by name; kernels are compiled for an H100 and do not run."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    ptx = {}

    def kind_of(value):
        return "*fp32" if isinstance(value, torch.Tensor) else "i32"

    def run(kernel, *args, grid, warmup, **named):
        values = dict(zip(kernel.arg_names, args, strict=False))
        values |= {name: named.pop(name) for name in kernel.arg_names if name in named}
        kinds = {p.name: "constexpr" for p in kernel.params if p.is_constexpr}
        signature = {name: kinds.get(name) or kind_of(value) for name, value in values.items()}
        constants = {name: values[name] for name, kind in signature.items() if kind == "constexpr"}
        source = ASTSource(kernel, signature, constants)
        found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=named)
        assert found.metadata.launch_pdl == launches.dependent
        ptx[kernel.__name__] = found.asm["ptx"]

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(triton_support, "can_launch_dependently", lambda device: True)
    return ptx


def launch_every_kernel():
    x = torch.zeros(1, 8, 6, 6, requires_grad=True)
    _, _, t = norm_act_resample(x * 1, slope=0.0, tail=Tail.PAD, border=1)
    t.sum().backward()
    _move(_spread_kernel, torch.zeros(1, 3, 8, 8), 7, 0, 8, 24)
    _move(_collect_kernel, torch.zeros(1, 24, 8, 8), 7, 0, 8, 3)
    features = torch.zeros(1, 16, 8, 8)
    qs_kernels.global_log_entropy(features)
    qs_kernels.local_log_entropy(features, 3)


def test_every_kernel_waits_before_it_touches_memory(compiled, monkeypatch):
    monkeypatch.setattr(launches, "dependent", True)
    launch_every_kernel()
    assert compiled.keys() == KERNELS
    for ptx in compiled.values():
        access = re.search(r"\b(?:(?:ld|st)\.(?!param)|atom\.|red\.|cp\.async)", ptx)
        assert -1 < ptx.find(WAIT) < ptx.find(ALLOW) < access.start()


def test_a_kernel_does_not_wait_otherwise(compiled):
    _move(_spread_kernel, torch.zeros(1, 3, 8, 8), 7, 0, 8, 24)
    assert "griddepcontrol" not in compiled["_spread_kernel"]


def model_of(words: str, gpu: int = -1):
    small = "--model cut --netG resnet_4blocks --nce_layers 0,4,8 --ngf 4 --ndf 4 --netF_nc 8 --num_patches 8"
    torch.manual_seed(0)
    return create_model(TrainOptions().parse(f"--gpu_ids {gpu} {small} {words}".split()))


def step(model) -> dict[str, float]:
    generator = torch.Generator().manual_seed(1)
    model.set_input({domain: torch.rand(1, 3, 32, 32, generator=generator) for domain in "AB"})
    model.optimize_parameters()
    return model.get_current_losses()


def test_each_model_s_step_runs_with_its_own_option():
    plain, dependent = model_of(""), model_of("--experimental dependent_launch")
    for model, expected in ((plain, False), (dependent, True), (plain, False)):
        step(model)
        assert launches.dependent is expected


def test_launches_on_a_cpu_are_ordinary(monkeypatch):
    monkeypatch.setattr(launches, "dependent", True)
    assert launches.options(torch.device("cpu")) == {"PDL": False}


@on_gpu
def test_gpu_a_chain_of_dependent_launches_computes_the_same_bits(monkeypatch):
    """Each kernel reads what the one ahead wrote, on maps from a few programs to many."""
    results = []
    for dependent in (False, True, True):
        monkeypatch.setattr(launches, "dependent", dependent)
        for side in (8, 64, 128):
            torch.manual_seed(0)
            x = torch.randn(2, 64, side, side, device="cuda", requires_grad=True)
            y = x
            for _ in range(10):
                _, _, y = norm_act_resample(y, slope=0.2, tail=Tail.UP)
                _, _, y = norm_act_resample(y, tail=Tail.DOWN)
            y.square().sum().backward()
            results.append((dependent, side, y.detach(), x.grad))
    ordinary = {side: tensors for dependent, side, *tensors in results if not dependent}
    for _, side, *tensors in results:
        assert all(torch.equal(one, other) for one, other in zip(tensors, ordinary[side], strict=True))


@on_gpu
def test_gpu_dependent_launches_are_captured():
    plain, dependent = (model_of(f"--fast {words}", 0) for words in ("", "--experimental dependent_launch"))
    for _ in range(3):
        torch.manual_seed(2)
        expected = step(plain)
        torch.manual_seed(2)
        assert step(dependent) == pytest.approx(expected, rel=0.1, abs=0.05)
    assert dependent.accelerator.recordings and dependent.accelerator.fused
