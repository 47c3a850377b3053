"""Every kernel that a default training step launches compiles for GPUs that are not there, and fits them."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models import create_model
from models.speed import qs_kernels, triton_support
from options.train_options import TrainOptions

triton = pytest.importorskip("triton")

SHARED_MEMORY = {80: 163, 90: 227}  # compute capability -> KiB that a program can have
RANKING = {"global": {"_global_states", "_merge_splits"}, "local": {"_local_log_entropy"}}
OTHERS = {"_spread_kernel", "_collect_kernel", "_moments_kernel", "_merge_kernel", "_apply_kernel"}
OTHERS |= {"_gather_gradient_kernel", "_sum_kernel", "_apply_gradient_kernel"}


def launches_of_a_step(words, capability):
    """The launches of a step on a GPU of `capability`: kernel, arguments (types for tensors), settings."""
    launches = []
    rank_globally = qs_kernels.rank_globally

    def note(kernel, *arguments, grid, warmup, **settings):
        kinds = tuple(a.dtype if isinstance(a, Tensor) else a for a in arguments)
        launches.append((kernel, kinds, settings))

    def rank_as_there(features):
        with patch.object(Tensor, "is_cuda", True):
            return rank_globally(features)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(triton_support, "works", lambda device: True)
        patched.setattr(qs_kernels, "works", lambda device: True)
        patched.setattr(torch.cuda, "get_device_capability", lambda device: divmod(capability, 10))
        patched.setattr(triton.JITFunction, "run", note)
        patched.setattr(qs_kernels, "rank_globally", rank_as_there)
        for name, empty in {"passed": set(), "failed": {}}.items():
            patched.setattr(triton_support.trials, name, empty)
        options = f"--gpu_ids -1 --channels_last --crop_size 64 --load_size 64 {words}"
        model = create_model(TrainOptions().parse(options.split()))
        with FakeTensorMode(allow_non_fake_inputs=True):  # tensors with shapes and without numbers
            model.set_input({domain: torch.zeros(1, 3, 64, 64) for domain in "AB"})
            model.optimize_parameters()
        assert not triton_support.trials.failed
    return launches


@pytest.mark.parametrize(
    "mode, words, capability",
    [("global", "--precision bf16", 80), ("global", "--precision bf16", 90), ("local", "", 80)],
)
def test_the_kernels_of_a_step_compile_and_fit(mode, words, capability):
    launches = launches_of_a_step(f"--QS_mode {mode} {words}", capability)
    assert {kernel.__name__ for kernel, *_ in launches} == OTHERS | RANKING[mode]
    paths = {}  # one launch of each path through each kernel
    for kernel, kinds, settings in launches:
        path = [(name, value) for name, value in settings.items() if isinstance(value, bool | float)]
        paths[kernel.__name__, settings.get("TAIL"), str(path)] = kernel, kinds, settings
    driver = SimpleNamespace(
        get_current_target=lambda: triton.backends.compiler.GPUTarget("cuda", capability, 32),
        get_current_device=lambda: f"sm_{capability}",
        get_current_stream=lambda device: 0,
    )
    with patch("triton.runtime.jit.driver", SimpleNamespace(active=driver)):
        for kernel, kinds, settings in paths.values():
            made = kernel.warmup(*kinds, grid=(1,), **settings)
            assert made.metadata.shared <= 1024 * SHARED_MEMORY[capability], (kernel.__name__, settings)
