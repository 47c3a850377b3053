"""Query selection and routing against loops straight from the definition, golden numbers, and properties."""

import math

import numpy as np
import pytest
import torch
from golden import load_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import close

from models import qs_attn
from models.patch_sampler import PatchSelection
from models.qs_attn import MODES, log_entropy, route_values, select_queries
from models.qs_released import RULES


def features_of(b=2, c=5, h=6, w=7, scale=1.0, seed=0):
    return scale * torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def keys_of(image, i, kind, window):
    """The keys of position i of an image (C, H, W) as a list of vectors, padded ones being zero."""
    c, h, w = image.shape
    if kind == "global":
        return [image[:, y, x] for y in range(h) for x in range(w)]
    y0, x0, reach = i // w, i % w, window // 2
    span = range(-reach, reach + 1)
    inside = lambda y, x: 0 <= y < h and 0 <= x < w  # noqa: E731
    return [
        image[:, y0 + dy, x0 + dx] if inside(y0 + dy, x0 + dx) else torch.zeros(c, dtype=image.dtype)
        for dy in span
        for dx in span
    ]


def row_of(image, i, kind, window):
    """Attention row i in float64, by a loop over its keys."""
    query = image[:, i // image.shape[2], i % image.shape[2]]
    scores = torch.stack([query @ key for key in keys_of(image, i, kind, window)])
    return scores.softmax(0)


def brute_force(source, target, mode, n, window):
    """Indices, attention and routed values of one image (C, H, W), by loops."""
    ranked_by, routed_by = RULES[mode]
    length = source.shape[1] * source.shape[2]
    entropies = [torch.special.entr(row_of(source, i, ranked_by, window)).sum().item() for i in range(length)]
    indices = sorted(range(length), key=lambda i: (entropies[i], i))[:n]
    attention = torch.stack([row_of(source, i, routed_by, window) for i in indices])
    value = lambda image, row, i: row @ torch.stack(keys_of(image, i, routed_by, window))  # noqa: E731
    rows = list(zip(attention, indices, strict=True))
    routed = [torch.stack([value(image, row, i) for row, i in rows]) for image in (source, target)]
    return entropies, indices, attention, *routed


@pytest.mark.parametrize("window", [3, 7])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_its_definition(float64, mode, window):
    source, target = features_of(), features_of(seed=1)
    selection = select_queries(source, mode, 9, window)
    found = selection.attention, route_values(source, selection), route_values(target, selection)
    log_h = log_entropy(source, mode, window)
    for b in range(2):
        entropies, indices, *expected = brute_force(source[b], target[b], mode, 9, window)
        torch.testing.assert_close(log_h[b], torch.tensor(entropies).log())
        assert selection.indices[b].tolist() == indices
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one[b], other)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_by_finite_differences(float64, mode):
    """Gradient reaches the target's features, and the source's through the weights; indices carry none."""
    source, target, cotangent = features_of(1, 3, 4, 5), features_of(1, 3, 4, 5, seed=1), torch.randn(1, 4, 3)
    indices = select_queries(source, mode, 4, 3).indices

    def loss(source, target):
        return (MODES[mode].attend(source, indices, 3).route(target) * cotangent).sum()

    assert torch.autograd.gradcheck(loss, (source.requires_grad_(), target.requires_grad_()))


@pytest.mark.parametrize("name", ["qs_global_0", "qs_global_1"])
def test_global_agrees_with_the_released_code(name):
    """Unsaturated rows rank alike by entropy and by log-entropy, so the released numbers must come out."""
    golden = load_golden(name)
    source, target = golden["source"].requires_grad_(), golden["target"].requires_grad_()
    selection = select_queries(source, "global", int(golden["num_queries"]))
    close(selection.attention, golden["attention"], rtol=1e-4)

    def unit(x):
        return (x / (x.norm(dim=-1, keepdim=True) + 1e-7)).flatten(0, 1)

    close(unit(route_values(source, selection)), golden["routed_source"], rtol=1e-4, atol=1e-5)
    routed = unit(route_values(target, selection))
    close(routed, golden["routed_target"], rtol=1e-4, atol=1e-5)
    (routed * golden["cotangent"]).sum().backward()
    close(source.grad, golden["grad_source"], rtol=1e-3, atol=1e-5)
    close(target.grad, golden["grad_target"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", ["local", "local_global"])
def test_local_agrees_with_true_windows(mode):
    golden = load_golden(f"qs_{mode}_spatial_0")
    window = int(golden["window"])
    selection = select_queries(golden["source"], mode, int(golden["num_queries"]), window)
    assert torch.equal(selection.indices, golden["indices"])
    log_h = log_entropy(golden["source"], "local", window)
    close(log_h, golden["entropy"].log().float(), rtol=1e-4, atol=1e-4)
    for name in ("source", "target"):
        expected = golden[f"routed_{name}_unnormalised"].float()
        close(route_values(golden[name], selection), expected, rtol=1e-4, atol=1e-5)


def test_saturated_rows_keep_their_true_order():
    """Entropies down to 1e-124, far below what a softmax in float32 can tell apart."""
    golden = load_golden("entropy_saturated")
    log_h = log_entropy(golden["features"], "global")
    assert torch.equal(log_h.sort(stable=True).indices, golden["order"])
    close(log_h.double(), golden["entropy"].log(), atol=1e-5)


def test_entropies_where_the_smallest_numbers_of_float32_lose_their_digits():
    """Rows of three scores, the second 60 to 110 below the top, against long doubles (numpy)."""
    gap = np.linspace(60, 110, 2001)
    scores = torch.from_numpy(-np.stack([0 * gap, gap, gap + 1.5], 1)).float()
    g = scores[:, 1:].numpy().astype(np.longdouble)
    r, t = np.exp(g).sum(1), (np.exp(g) * -g).sum(1)
    expected = torch.from_numpy(np.log(np.log1p(r) + t / (1 + r)).astype(np.float64))
    close(qs_attn._rows_log_entropy(scores.clone()).double(), expected, rtol=0, atol=2e-5)


def test_ties_go_to_the_lower_index():
    assert select_queries(torch.ones(1, 2, 4, 4), "global", 3).indices.tolist() == [[0, 1, 2]]


def test_blocks_of_queries_do_not_change_the_entropies(monkeypatch):
    features = features_of(scale=3).float()
    whole = log_entropy(features, "global")
    monkeypatch.setattr(qs_attn, "BLOCK_ELEMENTS", 5 * 42)
    torch.testing.assert_close(log_entropy(features, "global"), whole)


def test_selection_holds_no_gradient_of_a_matrix():
    """The chosen rows alone are in the graph: (B, N, L) is the largest tensor saved for backward."""
    features = features_of(1, 4, 16, 16).float().requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        route_values(features, select_queries(features, "global", 8))
    assert max(sizes) <= 8 * 256


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(sorted(MODES)),
    b=st.integers(1, 3),
    h=st.integers(1, 9).map(lambda i: 4 * i),
    w=st.integers(1, 9).map(lambda i: 4 * i),
    n=st.integers(1, 400),
    window=st.sampled_from([1, 3, 5, 7, 9, 15]),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_properties(mode, b, h, w, n, window, scale, seed):
    features = features_of(b, 3, h, w, scale, seed).float()
    selection = select_queries(features, mode, n, window)
    count = min(n, h * w)
    keys = window**2 if mode == "local" else h * w
    assert selection.indices.shape == (b, count) and selection.attention.shape == (b, count, keys)
    for row in selection.indices.tolist():
        assert len(set(row)) == count and 0 <= min(row) and max(row) < h * w
    assert torch.isfinite(selection.attention).all()
    torch.testing.assert_close(selection.attention.sum(-1), torch.ones(b, count))
    routed = route_values(features, selection)
    assert routed.shape == (b, count, 3) and torch.isfinite(routed).all()
    log_h = log_entropy(features, mode, window)
    ranked_keys = h * w if mode == "global" else window**2
    assert not log_h.isnan().any()
    assert (log_h <= math.log(max(math.log(ranked_keys), 1e-300)) + 1e-4).all()
    chosen = log_h.gather(1, selection.indices)
    assert (chosen[:, 1:] >= chosen[:, :-1]).all()


def test_routing_of_half_precision_rounds_the_attention_and_no_more():
    features = features_of(2, 5, 6, 7).float()
    for mode in MODES:
        half = features.bfloat16()
        selection = select_queries(half, mode, 8, 3)
        assert selection.attention.dtype == torch.float32
        exact = select_queries(half.float(), mode, 8, 3)
        assert torch.equal(selection.indices, exact.indices)
        torch.testing.assert_close(selection.attention, exact.attention)
        routed, expected = route_values(half, selection), route_values(half.float(), exact)
        torch.testing.assert_close(routed, expected, rtol=2e-2, atol=2e-2)


def test_positions_are_taken_alike_from_either_memory_format():
    indices, results = torch.tensor([[3, 0, 7], [11, 2, 5]]), []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        features = torch.arange(72.0).view(2, 3, 3, 4).to(memory_format=memory_format).requires_grad_()
        patches = PatchSelection(indices).route(features)
        (patches * torch.arange(18.0).view(2, 3, 3)).sum().backward()
        assert features.grad.is_contiguous(memory_format=memory_format)
        results.append((patches, features.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
