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
from models.qs_attn import check_rule, log_entropy, select_queries
from util.errors import UserError


@dataclass(frozen=True)
class QueryView:
    """The selection of one layer and mode on one image.

    log_entropy: (h, w) float32, log H of each position's row, of the attention that this mode ranks by.
    indices: (N,) int64, the chosen positions by ascending entropy.
    attention: (N, M) float32, their rows, each of sum 1.
    scores: (N, h * w) float32, the dot products f_i . f_j of the chosen positions with all positions. As they
        are not scaled, a row often has a single weight above 0; scores show what else a query resembles.
    window: k where the keys are the k x k window around each query, None where they are all positions.
    random: (N,) int64, the same number of positions, drawn as CUT draws them.
    image_shape: (H, W) of the image the encoder saw.
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

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the feature map."""
        return self.log_entropy.shape

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
    seed: int = 0,
) -> list[QueryView]:
    """The views of an image (1, C, H, W) in [-1, 1], H and W multiples of 4, for each layer and mode.

    Args:
        netG: a generator with `encode`; the image is moved to its device.
        layers: taps, as in `--nce_layers`.
        modes: of "global", "local", "local_global".
        seed: of the random positions; the global random state is not changed.

    Raises:
        UserError: a layer that the generator does not have.
        ValueError: a mode or window that does not exist.
    """
    for mode in modes:
        check_rule(mode, window)
    last = len(netG.tap_channels()) - 1
    for layer in layers:
        if not 0 <= layer <= last:
            raise UserError(f"there is no layer {layer}: the generator has layers 0 to {last}")
    device = next(netG.parameters()).device
    views = []
    for layer, features in zip(layers, netG.encode(image.to(device), layers), strict=True):
        h, w = features.shape[2:]
        vectors = features[0].float().flatten(1)  # (C, hw)
        random = random_positions(h * w, num_patches, seed)
        for mode in modes:
            selection = select_queries(features, mode, num_patches, window)
            views.append(
                QueryView(
                    layer=layer,
                    mode=mode,
                    log_entropy=log_entropy(features, mode, window)[0].view(h, w).cpu().numpy(),
                    indices=selection.indices[0].cpu().numpy(),
                    attention=selection.attention[0].float().cpu().numpy(),
                    scores=(vectors[:, selection.indices[0]].T @ vectors).cpu().numpy(),
                    window=selection.window,
                    random=random,
                    image_shape=tuple(image.shape[2:]),
                )
            )
    return views


def random_positions(num_locations: int, num_patches: int, seed: int) -> np.ndarray:
    """Positions as CUT draws them, (min(num_patches, num_locations),) int64, with their own random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return patch_sampler.random_locations(num_locations, num_patches, "cpu").numpy()


def pixel_centres(indices: np.ndarray, grid: tuple[int, int], image_shape: tuple[int, int]) -> np.ndarray:
    """The pixels in the middle of the positions' receptive fields: (N, 2) int64, row and column.

    Args:
        indices: (N,) positions of a feature map.
        grid: (h, w) of that map: smaller than the image by a whole stride, or larger by its padding
            (layer 0). Positions in the padding are drawn at the pixels they mirror.
        image_shape: (H, W).
    """
    places = np.stack(np.divmod(np.asarray(indices), grid[1]), axis=1)  # (N, 2)
    for axis, (cells, pixels) in enumerate(zip(grid, image_shape, strict=True)):
        stride, border = axis_geometry(cells, pixels)
        places[:, axis] = np.abs(places[:, axis] * stride - border)
        places[:, axis] = pixels - 1 - np.abs(pixels - 1 - places[:, axis])
    return places


def axis_geometry(cells: int, pixels: int) -> tuple[int, int]:
    """(stride, border) along one axis: position i of a feature map lies at pixel stride * i - border."""
    return max(1, round(pixels / cells)), max(0, (cells - pixels) // 2)


def upsample(values: np.ndarray, image_shape: tuple[int, int], smooth: bool) -> np.ndarray:
    """A map (h, w) over the image: (H, W) float32, bilinear (`smooth`) or by the nearest position."""
    for axis, pixels in enumerate(image_shape):
        cells = values.shape[axis]
        stride, border = axis_geometry(cells, pixels)
        at = ((np.arange(pixels) + border) / stride).clip(0, cells - 1)
        low = np.floor(at + (0.0 if smooth else 0.5)).astype(int).clip(0, cells - 1)
        high = (low + 1).clip(0, cells - 1)
        share = (at - low).astype(np.float32) if smooth else np.zeros(pixels, np.float32)
        share = share.reshape((-1, 1) if axis == 0 else (1, -1))
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values.astype(np.float32)
