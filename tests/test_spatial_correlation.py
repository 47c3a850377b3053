"""The spatially-correlative loss: the released numbers, and loops straight from the definition."""

from __future__ import annotations

import ast
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import DATA

from models.spatial_correlation import SelfSimilarity, contrastive_loss, correlation_loss, self_similarity

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
def test_learned_similarity_agrees_with_the_released_code(case, learned):
    golden, settings = case
    features = {name: golden[f"f_{name}"].requires_grad_() for name in ("src", "tgt", "oth")}
    maps = {name: learned(0, of, golden["patch_ids"]) for name, of in features.items()}
    contrastive = contrastive_loss(maps["src"], maps["tgt"], maps["oth"], settings["T"])
    contrastive.backward()

    assert_golden(contrastive, golden["loss_contrastive"])
    assert_golden(correlation_loss(maps["src"], maps["tgt"]), golden["loss_generator"])
    for name, of in features.items():
        assert_golden(maps[name], golden[f"sim_{name}"])
        assert_golden(of.grad, golden[f"d_f_{name}"])
    for key, parameter in learned.named_parameters():
        assert_golden(parameter.grad, golden[f"grad.{key}"])


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
