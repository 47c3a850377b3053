"""The metrics as functions of features and pixels: closed forms, brute force, agreement with libraries."""

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from scipy import linalg, ndimage, stats

from scripts import attention_intensity
from util.errors import UserError
from util.metrics import distances as swd
from util.metrics import segmentation, stripes
from util.metrics.distances import frechet_distance, kernel_inception_distance, polynomial_mmd2


def draw(count: int, dim: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Correlated features (count, dim), of the same distribution for all seeds and equal shifts."""
    mixing = np.random.default_rng(99).standard_normal((dim, dim)) / dim**0.5
    return np.random.default_rng(seed).standard_normal((count, dim)) @ mixing + shift


# Frechet distance


def test_frechet_distance_agrees_with_the_matrix_square_root() -> None:
    a, b = draw(400, 8), draw(300, 8, seed=1, shift=0.3)
    (mu1, cov1), (mu2, cov2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    root = linalg.sqrtm(cov1 @ cov2).real
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_distance_of_singular_covariances_is_exact() -> None:
    """Fewer images than features, as in every FID over 120 images; the same covariance, moved by 0.5."""
    features = draw(10, 64)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(features, features + 0.5) == pytest.approx(64 * 0.25, rel=1e-12)
    wider = 3 * features - 2 * features.mean(0)
    assert frechet_distance(features, wider) == pytest.approx(4 * np.trace(np.cov(features, rowvar=False)))


# Kernel distance


def test_mmd_agrees_with_the_double_loop() -> None:
    x, y = draw(5, 3), draw(7, 3, seed=1, shift=1.0)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 3 + 1) ** 3

    within_x = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    within_y = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert polynomial_mmd2(x, y) == pytest.approx(within_x + within_y - 2 * between)


def test_kernel_distance_draws_by_its_seed_alone() -> None:
    a, b = draw(40, 5), draw(30, 5, seed=1, shift=0.5)
    first = kernel_inception_distance(a, b, 10, seed=3)
    np.random.seed(0)
    assert kernel_inception_distance(a, b, 10, seed=3) == first != kernel_inception_distance(a, b, 10, seed=4)


# Sliced Wasserstein distance


def photographs(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth random images, uint8 (count, 3, size, size)."""
    noise = np.random.default_rng(seed).random((count, 3, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    return (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def test_sliced_wasserstein_agrees_with_transport_along_each_direction() -> None:
    a, b = draw(50, 6), draw(50, 6, seed=1, shift=0.4)
    rng = np.random.default_rng(7)
    distances = []
    for _ in range(2):
        for direction in rng.standard_normal((6, 5)).T:
            unit = direction / np.linalg.norm(direction)
            distances.append(stats.wasserstein_distance(a @ unit, b @ unit))
    assert swd.sliced_wasserstein(a, b, repeats=2, directions=5, seed=7) == pytest.approx(np.mean(distances))


def test_pyramid_adds_up_to_the_image() -> None:
    """Enlarging the remainder level by level and adding the bands restores the image."""
    image = photographs(1)[0].astype(np.float32)
    bands = swd.laplacian_pyramid(image, 3)
    assert [band.shape[1] for band in bands] == [32, 16, 8]
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])[None] / 256
    restored = bands[-1]
    for band in bands[-2::-1]:
        enlarged = np.zeros_like(band)
        enlarged[:, ::2, ::2] = restored
        restored = band + ndimage.convolve(enlarged, 4 * kernel, mode="mirror")
    np.testing.assert_allclose(restored, image, atol=1e-3)
    np.testing.assert_allclose(swd.laplacian_pyramid(np.full((3, 32, 32), 7.0), 2)[0], 0, atol=1e-5)


def test_patches_lie_in_the_bands() -> None:
    """Each is a 7 x 7 window of its own image's band, found here by exhaustive search."""
    images = photographs(2)
    patches = swd.pyramid_patches(images, size=32)
    assert [level.shape for level in patches] == [(2, 128, 3, 7, 7)] * 2
    assert swd.pyramid_distance(patches, patches) == [0, 0]
    for index, image in enumerate(images):
        for band, level in zip(swd.laplacian_pyramid(image, 2), patches, strict=True):
            side = band.shape[1] - 6
            windows = {band[:, y : y + 7, x : x + 7].tobytes() for y in range(side) for x in range(side)}
            assert all(np.ascontiguousarray(patch).tobytes() in windows for patch in level[index])


# Cityscapes scores


def test_scores_of_a_small_confusion_by_hand() -> None:
    """6 pixels of class 0, of which 4 are found; 2 of class 1, of which 1 is found and 1 unassigned."""
    label = np.array([[0, 0, 0, 0, 0, 0, 1, 1, 255]])
    prediction = np.array([[0, 0, 0, 0, 1, 1, 1, 255, 0]])
    confusion = segmentation.confusion_matrix(label, prediction, classes=3)
    np.testing.assert_array_equal(confusion, [[4, 2, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
    scores, iou = segmentation.segmentation_scores(confusion)
    assert scores == {
        "mean IoU": pytest.approx((4 / 6 + 1 / 4) / 2),
        "pixel accuracy": 5 / 8,
        "class accuracy": pytest.approx((4 / 6 + 1 / 2) / 2),
    }
    assert np.isnan(iou[2])


def test_colours_find_their_classes_through_jpeg(tmp_path) -> None:
    ids = np.repeat(np.repeat(np.arange(19).reshape(1, 19), 24, axis=1), 32, axis=0)
    palette = np.array([colour for _, _, colour in segmentation.CLASSES], np.uint8)
    np.testing.assert_array_equal(segmentation.nearest_palette_ids(palette[ids]), ids)
    Image.fromarray(palette[ids]).save(tmp_path / "map.jpg", quality=90)
    assert (segmentation.read_label_map(tmp_path / "map.jpg") == ids).mean() > 0.9


def test_label_files_of_every_kind_pair_off(tmp_path) -> None:
    """Cityscapes' own ids against train ids of half the size, and labels without a prediction."""
    label, prediction = tmp_path / "label", tmp_path / "pred"
    label.mkdir()
    prediction.mkdir()
    train_ids = np.random.default_rng(0).integers(0, 19, (8, 12)).astype(np.uint8)
    own_ids = np.array([number for _, number, _ in segmentation.CLASSES], np.uint8)[train_ids]
    Image.fromarray(np.kron(own_ids, np.ones((2, 2), np.uint8))).save(label / "aachen_1_gtFine_labelIds.png")
    Image.fromarray(train_ids).save(prediction / "aachen_1_leftImg8bit.png")
    scores, _, pairs = segmentation.score_label_folders(label, prediction)
    assert pairs == 1 and set(scores.values()) == {1}

    Image.fromarray(train_ids).save(label / "bonn_2.png")
    with pytest.raises(UserError, match="bonn_2.png has no prediction"):
        segmentation.score_label_folders(label, prediction)
    Image.fromarray(own_ids).save(prediction / "bonn_2.png")
    with pytest.raises(UserError, match="train ids are 0 to 18"):
        segmentation.score_label_folders(label, prediction)


def test_no_file_starts_another_program(tmp_path, monkeypatch) -> None:
    """An EPS file named .png would be drawn by Ghostscript: label maps, masks and pictures refuse it."""

    def started(*args, **kwargs):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    page = tmp_path / "a.png"
    page.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    for read in (
        segmentation.read_label_map,
        lambda path: stripes.read_picture(path, np.ones((8, 8), bool)),
        attention_intensity.label_regions,
    ):
        with pytest.raises(UserError, match="not an image of a known format"):
            read(page)
