"""How much of a masked body the chosen queries cover."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from models.query_pictures.view import pixel_centres
from scripts.measuring import markdown_table
from util.errors import UserError
from util.image_files import list_images


class Coverage(NamedTuple):
    """Shares of the chosen queries and of all positions that lie on a body, each in [0, 1]."""

    on_body: float
    area: float

    @property
    def ratio(self) -> float:
        """How many times more queries lie on the body than chance would put there; NaN without a body."""
        return self.on_body / self.area if self.area else float("nan")


def coverage(
    indices: np.ndarray | torch.Tensor, mask: np.ndarray, feature_shape: tuple[int, int]
) -> Coverage:
    """How much of a selection lies on the body.

    Args:
        indices: (N,) positions of a feature map.
        mask: (H, W), true on the body, of the image the encoder saw.
        feature_shape: (h, w) of the map.
    """

    def share(positions: np.ndarray) -> float:
        rows, columns = pixel_centres(positions, feature_shape, mask.shape).T
        return float(np.mean(mask[rows, columns] > 0))

    return Coverage(share(np.asarray(indices)), share(np.arange(feature_shape[0] * feature_shape[1])))


def find_masks(folder: Path, paths: Sequence[Path]) -> dict[Path, Path]:
    """The mask of each image that has one: the file of its name, in any format. UserError if none has one."""
    by_stem = {mask.stem: mask for mask in list_images(folder)}
    found = {path: by_stem[path.stem] for path in paths if path.stem in by_stem}
    if not found:
        raise UserError(
            f"no mask in {folder} has the name of an image of --input: name them as {paths[0].stem}.png"
        )
    return found


def coverage_table(covered: dict[tuple[int, str], list[tuple[Coverage, Coverage]]]) -> str:
    """Means over the images for each layer and mode, of the chosen queries and of random positions."""
    if not covered:
        return "coverage: no mask shows a body"
    images = len(next(iter(covered.values())))
    rows = []
    for (layer, mode), pairs in covered.items():
        chosen, random = (Coverage(*np.mean(side, axis=0)) for side in zip(*pairs, strict=True))
        row = [layer, mode, f"{chosen.on_body:.1%}", f"{chosen.area:.1%}", f"{chosen.ratio:.2f}"]
        rows.append([*row, f"{random.on_body:.1%}", f"{random.ratio:.2f}"])
    head = ["layer", "mode", "queries on the body", "area of the body", "ratio", "random positions", "ratio"]
    title = f"share of positions on the body, mean over {images} image{'s' * (images > 1)}"
    return f"{title}\n\n{markdown_table(head, rows)}"
