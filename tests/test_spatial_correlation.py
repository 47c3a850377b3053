"""The spatially-correlative loss: the released numbers, and loops straight from the definition."""

from __future__ import annotations

import ast
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import DATA

from models import patch_sampler
from models.spatial_correlation import (
    SelfSimilarity,
    SpatialCorrelativeLoss,
    contrastive_loss,
    correlation_loss,
    self_similarity,
)

FIXED = "abcdefgh"
LEARNED = ("L1", "L2")


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "baselines" / "lsesim.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture
def case(golden, request):
    """The numbers of one case in float64, and its settings."""
    start = f"{request.param}."
    numbers = {key.removeprefix(start): value for key, value in golden.items() if key.startswith(start)}
    settings = ast.literal_eval(str(numbers.pop("meta")))
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in numbers.items()}
    return {key: x.double() if x.is_floating_point() else x for key, x in tensors.items()}, settings


def assert_golden(found, expected):
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-7)


def by_definition(features, queries, window, use_norm):
    """Self-similarity maps of features (B, C, H, W) by loops over images, queries and keys."""
    _, c, h, w = features.shape
    whole = queries is None or window >= h or window >= w
    maps = []
    for image in features:
        f = image - image.mean((1, 2))[:, None, None]
        rows = []
        for query in range(h * w) if queries is None else queries.tolist():
            i, j = divmod(query, w)
            top = 0 if whole else min(max(i - window // 2, 0), h - window)
            left = 0 if whole else min(max(j - window // 2, 0), w - window)
            down, across = (h, w) if whole else (window, window)
            row = []
            for y in range(top, top + down):
                for x in range(left, left + across):
                    a, b = f[:, i, j], f[:, y, x]
                    row.append(a @ b / a.norm() / b.norm() if use_norm else torch.tanh(a @ b / (10 * c)))
            rows.append(torch.stack(row))
        maps.append(torch.stack(rows))
    return torch.stack(maps)


@pytest.mark.parametrize("case", FIXED, indirect=True)
def test_fixed_similarity_agrees_with_the_released_code(case):
    golden, settings = case
    queries, window, use_norm = golden.get("patch_ids"), settings["patch_size"], settings["use_norm"]
    target = golden["f_tgt"].requires_grad_()

    source_map, target_map = (
        self_similarity(f, queries, window, use_norm) for f in (golden["f_src"], target)
    )
    loss = correlation_loss(source_map, target_map, settings["loss_mode"], use_norm)
    loss.backward()

    assert_golden(source_map, golden["sim_src"])
    assert_golden(target_map, golden["sim_tgt"])
    assert_golden(loss, golden["loss"])
    assert_golden(target.grad, golden["d_f_tgt"])


@pytest.fixture
def learned(case):
    golden, settings = case
    similarity = SelfSimilarity([settings["C"]], settings["patch_size"], settings["use_norm"]).double()
    similarity.load_state_dict({key: x for key, x in golden.items() if key.startswith("conv_")})
    return similarity


@pytest.mark.parametrize("case", LEARNED, indirect=True)
def test_learned_similarity_agrees_with_the_released_code(case, learned, monkeypatch):
    golden, settings = case
    monkeypatch.setattr(patch_sampler, "random_locations", lambda *_: golden["patch_ids"])
    loss = SpatialCorrelativeLoss(learned, settings["patch_nums"], temperature=settings["T"])
    source, target, other = (golden[f"f_{name}"].requires_grad_() for name in ("src", "tgt", "oth"))

    for name, features in {"src": source, "tgt": target, "oth": other}.items():
        assert_golden(learned(0, features, golden["patch_ids"]), golden[f"sim_{name}"])
    contrastive = loss.contrast([source], [target], [other])
    contrastive.backward()

    assert_golden(contrastive, golden["loss_contrastive"])
    for name, features in {"src": source, "tgt": target, "oth": other}.items():
        assert_golden(features.grad, golden[f"d_f_{name}"])
    for key, parameter in learned.named_parameters():
        assert_golden(parameter.grad, golden[f"grad.{key}"])


@pytest.mark.parametrize("case", LEARNED, indirect=True)
def test_loss_of_the_generator_through_frozen_convolutions(case, learned, monkeypatch):
    golden, settings = case
    monkeypatch.setattr(patch_sampler, "random_locations", lambda *_: golden["patch_ids"])
    target = golden["f_tgt"].requires_grad_()

    loss = SpatialCorrelativeLoss(learned.requires_grad_(False), settings["patch_nums"])
    value = loss([golden["f_src"]], [target])
    value.backward()

    assert_golden(value, golden["loss_generator"])
    assert_golden(target.grad, golden["gen_d_f_tgt"])


@pytest.mark.parametrize("use_norm", [False, True])
@pytest.mark.parametrize(("height", "width"), [(4, 7), (7, 4), (5, 5)])
@pytest.mark.parametrize("window", [2, 3, 4, 5])
def test_maps_by_definition_on_maps_of_any_shape(height, width, window, use_norm):
    """Windows inside the map, at its borders, and as large as its shorter side (all positions then)."""
    torch.manual_seed(0)
    features = torch.randn(2, 3, height, width, dtype=torch.float64)
    queries = torch.randperm(height * width)
    found = self_similarity(features, queries, window, use_norm)
    torch.testing.assert_close(found, by_definition(features, queries, window, use_norm))
    everywhere = self_similarity(features, None, window, use_norm)
    torch.testing.assert_close(everywhere, by_definition(features, None, window, use_norm))


def test_a_transposed_image_has_the_same_loss():
    """Rows and columns are not mixed up: transposing maps and queries changes nothing (odd windows)."""
    torch.manual_seed(0)
    source, target = torch.randn(2, 1, 4, 6, 9, dtype=torch.float64)
    queries = torch.randperm(6 * 9)[:20]
    transposed = queries % 9 * 6 + queries // 9
    before = correlation_loss(*(self_similarity(f, queries, 3) for f in (source, target)))
    after = correlation_loss(*(self_similarity(f.mT, transposed, 3) for f in (source, target)))
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("use_norm", [False, True])
@pytest.mark.parametrize("mode", ["cos", "l1"])
def test_loss_by_definition(mode, use_norm):
    torch.manual_seed(0)
    source, target = torch.rand(2, 2, 3, 9, dtype=torch.float64) * 4 - 2
    terms = []
    for s, t in zip(source.flatten(0, 1), target.flatten(0, 1), strict=True):
        largest = t.argsort(descending=True)[: 9 // 4 + 1]
        if mode == "cos":
            differences = [1 - s[largest] @ t[largest] / s[largest].norm() / t[largest].norm()]
        else:
            differences = [(s[j] - t[j]) * 9 / 2 if j in largest else torch.tensor(0.0) for j in range(9)]
        for d in map(abs, differences):
            smooth = d**2 / 2 if d < 1 else d - 0.5
            terms.append(d if use_norm else smooth)
    expected = sum(terms) / len(terms)
    torch.testing.assert_close(correlation_loss(source, target, mode, use_norm), expected)


def test_contrast_by_definition():
    """Every query of source, target and other in explicit sums; images of the batch are apart."""
    torch.manual_seed(0)
    maps = F.normalize(torch.rand(3, 2, 3, 5, dtype=torch.float64), dim=-1)
    source, target, other = maps
    terms = []
    for b in range(2):
        for i in range(3):
            candidates = [(source[b, i], target[b, j]) for j in range(3)]
            candidates += [(source[b, i], other[b, j]) for j in range(3)]
            candidates += [(target[b, i], other[b, j]) for j in range(3)]
            weights = [math.exp(left @ right / 0.1) for left, right in candidates]
            terms.append(-math.log(weights[i] / sum(weights)))
    expected = torch.tensor(sum(terms) / len(terms), dtype=torch.float64)
    torch.testing.assert_close(contrastive_loss(source, 3 * target, other, 0.1), expected)


def test_queries_are_drawn_for_every_layer_and_call_and_shared_by_all_sides(monkeypatch):
    drawn = []

    def draw(num_locations, num_patches, device):
        drawn.append((num_locations, num_patches))
        return torch.arange(num_locations)[:num_patches]

    monkeypatch.setattr(patch_sampler, "random_locations", draw)
    layers = [torch.randn(2, 8, 6, 9), torch.randn(2, 8, 3, 4)]
    loss = SpatialCorrelativeLoss(SelfSimilarity(), num_queries=7)
    loss(layers, layers)
    loss.contrast(layers, layers, layers)
    assert drawn == [(54, 7), (12, 7)] * 2


def test_without_a_number_of_queries_all_positions_are_compared(monkeypatch):
    monkeypatch.setattr(patch_sampler, "random_locations", lambda *_: pytest.fail("nothing to draw"))
    source, target = torch.randn(2, 1, 4, 5, 6)
    value = SpatialCorrelativeLoss(SelfSimilarity(window=2), num_queries=-1)([source], [target])
    expected = correlation_loss(self_similarity(source, None, 2), self_similarity(target, None, 2))
    torch.testing.assert_close(value, expected)


def test_keys_and_sizes_of_the_learned_convolutions():
    """Named as in released checkpoints; C / 4 channels, but at least 32."""
    shapes = {key: tuple(value.shape) for key, value in SelfSimilarity([16, 256]).state_dict().items()}
    assert shapes == {
        "conv_0.0.weight": (32, 16, 1, 1),
        "conv_0.0.bias": (32,),
        "conv_0.2.weight": (32, 32, 1, 1),
        "conv_0.2.bias": (32,),
        "conv_1.0.weight": (64, 256, 1, 1),
        "conv_1.0.bias": (64,),
        "conv_1.2.weight": (64, 64, 1, 1),
        "conv_1.2.bias": (64,),
    }
    assert not SelfSimilarity().state_dict()


def test_half_precision_is_near_and_the_loss_is_float32():
    torch.manual_seed(0)
    source, target = torch.randn(2, 1, 16, 8, 8)
    loss = SpatialCorrelativeLoss(SelfSimilarity([16], window=4), num_queries=-1)
    exact = loss([source], [target])
    with torch.autocast("cpu", torch.bfloat16):
        halved = loss([source.bfloat16()], [target.bfloat16()])
        contrast = loss.contrast([source], [target], [source.flip(3)])
    assert halved.dtype == contrast.dtype == torch.float32
    assert halved.item() == pytest.approx(exact.item(), rel=0.05)
