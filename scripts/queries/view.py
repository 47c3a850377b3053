"""The query selection of one image as arrays to draw: entropies, chosen positions and their attention rows.

All of it comes from `models.qs_attn` on the encoder's features. A position of a feature map is drawn at the
pixel in the middle of its receptive field. In the ResNet generator this is exact: 3 x 3 convolutions and
blurs keep centres, so position i of a map with stride s lies at pixel s * i (not half a stride further).

Shapes: H x W the image, h x w the feature map, N queries, M keys of a query (h * w, or k * k in a window).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from models import patch_sampler
from models.qs_attn import check_rule, select_queries
from models.qs_model import pooled
from util.errors import UserError


@dataclass(frozen=True)
class QueryView:
    """The selection of one layer and mode on one image.

    log_entropy: (h, w) float32, what this mode ranks positions by: log H of each one's row.
    indices: (N,) int64, the chosen positions, the least first.
    attention: (N, M) float32, their rows, each of sum 1.
    scores: (N, h * w) float32, the dot products f_i . f_j of the chosen positions with all positions. As they
        are not scaled, a row often has a single weight above 0; scores show what else a query resembles.
    window: k where the keys are the k x k window around each query, None where they are all positions.
    random: (N,) int64, the same number of positions, drawn as CUT draws them.
    image_shape: (H, W) of the image the encoder saw.
    geometry: (stride, border) of each axis: position i lies at pixel stride * i - border.
    """

    layer: int
    mode: str
    log_entropy: np.ndarray
    indices: np.ndarray
    attention: np.ndarray
    scores: np.ndarray
    window: int | None
    random: np.ndarray
    image_shape: tuple[int, int]
    geometry: tuple[tuple[float, float], tuple[float, float]]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the feature map."""
        return self.log_entropy.shape

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """The pixels of positions (N,): (N, 2) int64, row and column. Those in padding: what they mirror."""
        places = np.stack(np.divmod(np.asarray(indices), self.grid[1]), axis=1).astype(float)  # (N, 2)
        for axis, ((stride, border), pixels) in enumerate(zip(self.geometry, self.image_shape, strict=True)):
            places[:, axis] = np.abs(places[:, axis] * stride - border)
            places[:, axis] = pixels - 1 - np.abs(pixels - 1 - places[:, axis])
        return np.rint(places).astype(np.int64)

    def row_map(self, rank: int) -> np.ndarray:
        """The attention row of the query of this rank as a map over the image's positions: (h, w) float32.

        Weights on padded keys of a window lie outside the map and are left out.
        """
        h, w = self.grid
        if self.window is None:
            return self.attention[rank].reshape(h, w)
        reach = self.window // 2
        row, column = divmod(int(self.indices[rank]), w)
        padded = np.zeros((h + 2 * reach, w + 2 * reach), np.float32)
        weights = self.attention[rank].reshape(self.window, self.window)
        padded[row : row + self.window, column : column + self.window] = weights
        return padded[reach : reach + h, reach : reach + w]


@torch.no_grad()
def view_queries(
    netG: nn.Module,
    image: torch.Tensor,
    layers: Sequence[int],
    modes: Sequence[str],
    num_patches: int = 256,
    window: int = 7,
    pool: int = 0,
    seed: int = 0,
) -> list[QueryView]:
    """The views of an image (1, C, H, W) in [-1, 1], H and W multiples of 4, for each layer and mode.

    Args:
        layers, modes, pool: as in `--nce_layers`, `models.qs_attn.MODES`, `--qs_pool`.
        seed: of the random positions; the global random state is not changed.

    Raises:
        UserError: a layer that the generator does not have.
        ValueError: a mode or window that does not exist.
    """
    rules = {mode: check_rule(mode, window) for mode in modes}
    last = len(netG.tap_channels()) - 1
    for layer in layers:
        if not 0 <= layer <= last:
            raise UserError(f"there is no layer {layer}: the generator has layers 0 to {last}")
    device = next(netG.parameters()).device
    views = []
    for layer, whole in zip(layers, netG.encode(image.to(device), layers), strict=True):
        features = pooled(whole, pool)
        h, w = features.shape[2:]
        vectors = features[0].float().flatten(1)  # (C, hw)
        axes = zip(whole.shape[2:], (h, w), image.shape[2:], strict=True)
        geometry = tuple(axis_geometry(*lengths) for lengths in axes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random = patch_sampler.random_locations(h * w, num_patches, "cpu").numpy()
        for mode, rule in rules.items():
            selection = select_queries(features, mode, num_patches, window)
            views.append(
                QueryView(
                    layer=layer,
                    mode=mode,
                    log_entropy=rule.rank(features, window)[0].float().view(h, w).cpu().numpy(),
                    indices=selection.indices[0].cpu().numpy(),
                    attention=selection.attention[0].float().cpu().numpy(),
                    scores=(vectors[:, selection.indices[0]].T @ vectors).cpu().numpy(),
                    window=selection.window,
                    random=random,
                    image_shape=tuple(image.shape[2:]),
                    geometry=geometry,
                )
            )
    return views


def axis_geometry(whole: int, cells: int, pixels: int) -> tuple[float, float]:
    """(stride, border) along an axis of a map of `whole` positions, averaged to `cells`.

    The map is smaller than the image by a whole stride, or larger by its padding (layer 0).
    """
    stride, border = max(1, round(pixels / whole)), max(0, (whole - pixels) // 2)
    average = whole / cells  # positions in one: it lies in their middle
    return stride * average, border - stride * (average - 1) / 2
