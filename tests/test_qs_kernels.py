"""The ranking kernels against rows computed one by one in float64: in the interpreter, and on a GPU."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import on_gpu
from golden import load_golden
from scipy.special import logsumexp

from models import qs_attn
from models.speed import qs_kernels

NCHW, NHWC = torch.contiguous_format, torch.channels_last


def brute_force(features, window=None):
    """log H (B, H*W) and the largest |score|, row by row; a window's keys outside the image are 0.

    By the method's formula, in float64 and in logarithms throughout.
    """
    vectors, log_entropy, largest = features.double().numpy(), [], 0
    reach = (window or 1) // 2
    for image in vectors:
        padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)))
        for y, x in np.ndindex(image.shape[1:]):
            keys = padded[:, y : y + window, x : x + window] if window else image
            scores = image[:, y, x] @ keys.reshape(len(image), -1)
            largest = max(largest, np.abs(scores).max())
            g = np.delete(scores, scores.argmax()) - scores.max()
            with np.errstate(divide="ignore"):  # a tied top has log(-g) = -inf
                log_r, log_t = (logsumexp(terms) if len(g) else -np.inf for terms in (g, g + np.log(-g)))
            log_log1p_r = np.log(np.log1p(np.exp(log_r))) if log_r > -30 else log_r
            log_entropy.append(np.logaddexp(log_log1p_r, log_t - np.log1p(np.exp(log_r))))
    return torch.tensor(np.reshape(log_entropy, (len(vectors), -1))), largest


def assert_same_ranking(found, features, window=None, num_queries=32):
    """Values agree to 1e-4 or to the rounding of scores; the same rows are chosen but for such near ties."""
    expected, largest = brute_force(features, window)
    tolerance = {"rtol": 1e-4, "atol": 1e-5 + 1e-6 * largest}
    torch.testing.assert_close(found.double(), expected, **tolerance)
    chosen = expected.gather(1, found.sort(dim=1, stable=True).indices[:, :num_queries])
    torch.testing.assert_close(chosen, expected.sort(dim=1).values[:, :num_queries], **tolerance)


def features_of(*shape, scale=1.0, memory_format=NCHW, seed=0):
    features = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return features.contiguous(memory_format=memory_format)


def test_order_of_saturated_rows_is_exact(run):
    """Entropies down to 1e-124, whose order long doubles tell."""
    golden = load_golden("entropy_saturated")
    log_entropy = run(qs_kernels.rank_globally, golden["features"])
    torch.testing.assert_close(log_entropy.double(), golden["entropy"].log(), rtol=1e-5, atol=1e-4)
    assert torch.equal(log_entropy.sort(dim=1, stable=True).indices, golden["order"])


@pytest.mark.parametrize(("scale", "memory_format"), [(0.1, NHWC), (1.0, NCHW), (30.0, NCHW)])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 20, 9, 15), (3, 64, 13, 11)])
def test_global_is_its_definition(run, shape, scale, memory_format):
    features = features_of(*shape, scale=scale, memory_format=memory_format)
    assert_same_ranking(run(qs_kernels.rank_globally, features), features)


def test_programs_that_stream_several_blocks_of_keys(run):
    """From about 2,048 positions on, a split of the keys is more than one block."""
    features = features_of(1, 6, 47, 46, scale=2.0)
    assert_same_ranking(run(qs_kernels.rank_globally, features), features)


@pytest.mark.parametrize(("scale", "memory_format"), [(0.1, NCHW), (30.0, NHWC)])
@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize("shape", [(1, 3, 2, 4), (1, 20, 9, 15), (3, 65, 6, 7)])
def test_local_is_its_definition(run, shape, window, scale, memory_format):
    """Among the shapes: an image smaller than the window, and channels that fill no block."""
    features = features_of(*shape, scale=scale, memory_format=memory_format)
    assert_same_ranking(run(qs_kernels.rank_locally, features, window), features, window)


@pytest.mark.parametrize("input_precision", qs_kernels.PRECISIONS)
def test_the_state_merges_in_any_order(run, input_precision):
    """Permuted positions meet other blocks and other splits, and give the same rows."""
    features = features_of(1, 40, 1, 300, scale=2.0)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    found = [run(qs_kernels.rank_globally, x, input_precision) for x in (features, features[..., order])]
    torch.testing.assert_close(found[1], found[0][:, order], rtol=1e-5, atol=1e-4)


def test_an_image_has_its_log_entropy_whatever_its_batch(run):
    features = features_of(3, 8, 9, 15)
    for function, args in ((qs_kernels.rank_globally, ()), (qs_kernels.rank_locally, (5,))):
        assert torch.equal(run(function, features, *args)[1:2], run(function, features[1:2], *args))


def test_ties_and_rows_of_one_key(run):
    constant = torch.ones(1, 4, 12, 17)
    uniform = torch.full((1, 204), 204.0).log().log()  # all scores are equal: H = log L
    torch.testing.assert_close(run(qs_kernels.rank_globally, constant), uniform)
    zero = torch.zeros(1, 4, 3, 3)  # as they are between zero vectors and the padding
    uniform = torch.full((1, 9), 49.0).log().log()
    torch.testing.assert_close(run(qs_kernels.rank_locally, zero, 7), uniform)
    twins = features_of(1, 8, 10, 10, scale=10.0).repeat(1, 1, 2, 1)  # every top score twice: H is near log 2
    assert_same_ranking(run(qs_kernels.rank_globally, twins), twins)
    assert run(qs_kernels.rank_globally, features_of(2, 8, 1, 1)).tolist() == [[-torch.inf]] * 2
    assert run(qs_kernels.rank_locally, features_of(1, 8, 2, 2), 1).tolist() == [[-torch.inf] * 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_features_are_taken_as_they_stand(run, dtype):
    """Their products are exact in float32: only the rounding of the features themselves is lost."""
    features = features_of(2, 40, 9, 15, scale=3.0).to(dtype)
    assert_same_ranking(run(qs_kernels.rank_globally, features), features)
    assert_same_ranking(run(qs_kernels.rank_locally, features, 5), features, 5)


def test_nothing_runs_where_triton_is_missing():
    code = (
        "import sys; sys.modules['triton'] = None; import torch; from models.speed import qs_kernels as q; "
    )
    code += "assert q.log_entropy(q.rank_globally, torch.zeros(1, 2, 4, 4)) is None"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


@on_gpu
@pytest.mark.parametrize("memory_format", [NCHW, NHWC])
def test_at_training_size_without_the_matrix(memory_format):
    """Two images of 256 x 64 x 64 features: the same choices, and no matrix in memory.

    Sums along a line make neighbours resemble one another, and rows saturate, as real features do.
    """
    features = features_of(2, 256, 64, 64).cumsum(-1) / 2
    features = features.contiguous(memory_format=memory_format).cuda()
    vectors = features.double().flatten(2)
    expected = qs_attn._rows_log_entropy(vectors.mT @ vectors)  # (B, L, L) -> (B, L)
    wanted = expected.topk(256, largest=False).indices.tolist()
    for input_precision in (None, *qs_kernels.PRECISIONS):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = qs_kernels.rank_globally(features, input_precision)
        assert torch.cuda.max_memory_allocated() - before < 16 * 2**20  # one matrix is 64 MB
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-2)
        chosen = found.topk(256, largest=False).indices.tolist()
        assert all(len(set(a) & set(b)) >= 255 for a, b in zip(chosen, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_windows_and_their_gradient_are_those_of_indexing(dtype):
    """What CUDA does in place of indexing; places occur several times, as those of overlapping windows do."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 12, 5, generator=generator).to(dtype).requires_grad_()
    places = torch.randint(12, (2, 4, 9), generator=generator)
    weight = torch.randn(2, 4, 9, 5, generator=generator).to(dtype)
    found = qs_attn._Rows.apply(rows, places)
    (gradient,) = torch.autograd.grad(found, rows, weight)
    plain = rows.detach().double().requires_grad_()
    expected = torch.stack([image[of_image] for image, of_image in zip(plain, places, strict=True)])
    (exact,) = torch.autograd.grad(expected, plain, weight.double())
    assert torch.equal(found.double(), expected) and gradient.dtype == dtype
    torch.testing.assert_close(gradient, exact.to(dtype), rtol=1e-6, atol=1e-6)
