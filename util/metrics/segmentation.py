"""Scores of Cityscapes label maps: mean intersection over union, pixel and class accuracy of 19 classes.

A label map is a single-channel image of train ids (0 ... 18, 255 ignored), one of Cityscapes' own ids (a file
named *_labelIds.png), or a colour map, whose pixels are assigned to the nearest colour of the Cityscapes
palette (JPEG and resizing change colours). The palette's void colours are ignored.
"""

import re
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from util.errors import UserError
from util.image_files import list_images, read_image

IGNORED = 255

# Name, Cityscapes id, colour; the index in the list is the train id.
CLASSES = [
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)), ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)), ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)), ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
]  # fmt: skip
# Unlabelled, dynamic, ground, parking, rail track, guard rail, bridge, tunnel, caravan, trailer
VOID_COLOURS = [
    (0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140),
    (180, 165, 180), (150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110),
]  # fmt: skip
_PALETTE = np.array([colour for _, _, colour in CLASSES] + VOID_COLOURS, np.int64)
_TRAIN_ID_OF_COLOUR = np.array([*range(len(CLASSES)), *[IGNORED] * len(VOID_COLOURS)])
_TRAIN_ID_OF_CITYSCAPES_ID = np.full(256, IGNORED)
_TRAIN_ID_OF_CITYSCAPES_ID[[number for _, number, _ in CLASSES]] = range(len(CLASSES))


def nearest_palette_ids(colours: np.ndarray) -> np.ndarray:
    """The train ids (...) of the palette's colours nearest to (..., 3) in 0..255; 255 for void colours."""
    flat = colours.reshape(-1, 3).astype(np.int64)
    distinct, where = np.unique(flat @ (65536, 256, 1), return_inverse=True)
    distinct = np.stack([distinct >> 16, distinct >> 8 & 255, distinct & 255], axis=1)  # (K, 3)
    distances = ((distinct[:, None] - _PALETTE[None]) ** 2).sum(axis=2)  # (K, palette)
    return _TRAIN_ID_OF_COLOUR[distances.argmin(axis=1)][where].reshape(colours.shape[:-1])


def read_label_map(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The train ids (H, W) int64 of a label map, at (width, height) `size`. Raises `UserError`."""
    image = read_image(path)
    if size is not None and image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST)
    if image.mode not in ("L", "P", "I", "I;16", "1"):
        return nearest_palette_ids(np.asarray(image.convert("RGB")))
    ids = np.asarray(image).astype(np.int64)
    if Path(path).stem.endswith("_labelIds"):
        return _TRAIN_ID_OF_CITYSCAPES_ID[ids.clip(0, IGNORED)]
    unknown = np.setdiff1d(ids, [*range(len(CLASSES)), IGNORED])
    if unknown.size:
        found = (
            f"{path} holds the label {unknown[0]}, but train ids are 0 to {len(CLASSES) - 1} and {IGNORED}"
        )
        raise UserError(f"{found}; name a file of Cityscapes' own ids *_labelIds.png, or give a colour map")
    return ids


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, classes: int = len(CLASSES)) -> np.ndarray:
    """Counts (classes, classes + 1): row label, of 255 none; column prediction, the last of 255."""
    labelled = label != IGNORED
    rows, columns = label[labelled], np.minimum(prediction[labelled], classes)
    counts = np.bincount(rows * (classes + 1) + columns, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def frame_name(path: Path) -> str:
    """The part of a name that all files of one Cityscapes frame share."""
    return re.sub(r"_(leftImg8bit|gt(Fine|Coarse)_\w+)$", "", path.stem)


def score_label_folders(
    label: str | Path, prediction: str | Path
) -> tuple[dict[str, float], dict[str, float], int]:
    """Scores over two folders of label maps paired by `frame_name`; the IoU by class; the number of pairs."""
    predictions = {frame_name(path): path for path in list_images(prediction)}
    labels = list_images(label)
    confusion = np.zeros((len(CLASSES), len(CLASSES) + 1), np.int64)
    for path in tqdm(labels, desc="label maps", unit="image", leave=False):
        name = frame_name(path)
        if name not in predictions:
            raise UserError(f"{path} has no prediction: {prediction} holds no file named {name}.*")
        truth = read_label_map(path)
        confusion += confusion_matrix(truth, read_label_map(predictions[name], truth.shape[::-1]))
    if not confusion.any():
        raise UserError(f"the label maps in {label} have no labelled pixel")
    scores, iou = segmentation_scores(confusion)
    return scores, dict(zip((name for name, _, _ in CLASSES), iou.tolist(), strict=True)), len(labels)


def segmentation_scores(confusion: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Scores in [0, 1] of a `confusion_matrix` (K, K + 1), and the IoU (K,) of each class.

    The IoU of a class that neither side contains is NaN, and left out of the mean. Accuracies are of the
    labelled pixels, and the mean recall of the labelled classes.
    """
    hits, labelled = np.diag(confusion), confusion.sum(axis=1)
    predicted = confusion[:, : len(hits)].sum(axis=0)
    with np.errstate(invalid="ignore"):
        iou, recall = hits / (labelled + predicted - hits), hits / labelled
    scores = {"mean IoU": np.nanmean(iou), "pixel accuracy": hits.sum() / labelled.sum()}
    scores["class accuracy"] = np.nanmean(recall)
    return {name: float(score) for name, score in scores.items()}, iou
