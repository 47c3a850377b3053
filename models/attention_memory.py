"""The attention memory (ASGIT, v1): for each training image, the last attention map of its translation.

A map is kept at its own small size with the window that it was made from, and a lookup resamples it into the
window of the next crop. Outside the old crop the map is one, as for unseen images. A window is five numbers:
top, left, height and width as fractions of the image's, then 1 if the crop is mirrored, else 0.
"""

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import resize_map
from util.distributed import gather

WHOLE = (0.0, 0.0, 1.0, 1.0, 0.0)  # the window of an image that is neither cropped nor mirrored
UNKNOWN = (1, 1, 1)  # the shape of maps before the first one is stored


class AttentionMemory(nn.Module):
    """Attention maps by image path: maps (N, 1, h, w), windows (N, 5) and flags (N,), saved with their paths.

    h and w are those of the first map stored. `lookup` and `store` do not synchronise with the device. With
    several processes each `store` gathers all maps. Paths are kept relative to `root`.
    """

    def __init__(self, root: str = "") -> None:
        super().__init__()
        self.root = root
        self._row: dict[str, int] = {}
        for name in ("maps", "windows", "stored"):
            self.register_buffer(name, None, persistent=False)
        self.register_buffer("whole", torch.tensor([WHOLE]), persistent=False)
        self._clear(UNKNOWN)

    def add(self, paths: Sequence[str]) -> list[int]:
        """Make room for images, in one order in all processes; known ones keep their maps. Their rows."""
        keys = [os.path.relpath(path, self.root) for path in paths]
        for key in keys:
            self._row.setdefault(key, len(self._row))
        if more := len(self._row) - len(self.stored):
            self.maps = torch.cat([self.maps, self.maps.new_ones(more, *self.maps.shape[1:])])
            self.windows = torch.cat([self.windows, self.whole.expand(more, -1)])
            self.stored = torch.cat([self.stored, self.stored.new_zeros(more)])
        return [self._row[key] for key in keys]

    def rows(self, paths: Sequence[str]) -> Tensor:
        """The rows (B,) int64 of images, which are added where they are unknown."""
        rows = torch.tensor(self.add(paths))
        return (rows.pin_memory() if self.maps.is_cuda else rows).to(self.maps.device, non_blocking=True)

    @torch.no_grad()
    def lookup(self, rows: Tensor, size: tuple[int, int], windows: Tensor | None = None) -> Tensor:
        """Maps (B, 1, *size) for the crops `windows` (B, 5; None: whole) of the images `rows` (B,)."""
        grid = _positions(self._filled(windows, rows), self.windows[rows], size)
        maps = F.grid_sample(self.maps[rows], grid, padding_mode="border", align_corners=False)
        inside = (grid.abs() <= 1).all(-1)[:, None]  # (B, 1, height, width)
        known = self.stored[rows, None, None, None]  # (B, 1, 1, 1)
        return torch.where(inside & known, maps, 1.0)

    @torch.no_grad()
    def store(self, rows: Tensor, maps: Tensor, windows: Tensor | None = None) -> None:
        """Keep maps (B, 1, h, w) in [0, 1] of the crops `windows` of the images `rows`, as in `lookup`."""
        parts = (rows, maps.to(self.maps.dtype), self._filled(windows, rows))
        rows, maps, windows = (torch.cat(gather(part)) for part in parts)
        if self.maps.shape[1:] == UNKNOWN:
            self._clear(maps.shape[1:])
        maps = resize_map(maps, self.maps.shape[2:])
        # Equal rows get equal values, because the order in which a GPU writes them is undefined.
        order = torch.arange(len(rows), device=rows.device)
        last = torch.where(rows[:, None] == rows, order, 0).amax(1)  # (B,)
        self.maps[rows], self.windows[rows] = maps[last], windows[last]
        self.stored.index_fill_(0, rows, True)

    def get_extra_state(self) -> dict[str, object]:
        """The stored maps with their paths and windows, on the CPU."""
        stored = self.stored.tolist()
        paths = [path for path, row in self._row.items() if stored[row]]
        rows = torch.tensor([self._row[path] for path in paths], dtype=torch.int64)
        return {"paths": paths, "maps": self.maps.cpu()[rows], "windows": self.windows.cpu()[rows]}

    def set_extra_state(self, state: dict[str, object]) -> None:
        """Replace all maps by the saved ones; those of other images are ones."""
        paths, maps = state["paths"], state["maps"]
        rows = self.add([os.path.join(self.root, path) for path in paths])
        rows = torch.tensor(rows, dtype=torch.int64, device=self.maps.device)
        self._clear(maps.shape[1:] if paths else UNKNOWN)
        self.maps[rows], self.windows[rows] = maps.to(self.maps), state["windows"].to(self.windows)
        self.stored[rows] = True

    def _clear(self, shape: Sequence[int]) -> None:
        """No maps; room for maps of this shape (1, h, w)."""
        count = len(self._row)
        self.maps = self.whole.new_ones(count, *shape)
        self.windows = self.whole.repeat(count, 1)
        self.stored = torch.zeros(count, device=self.whole.device, dtype=torch.bool)

    def _filled(self, windows: Tensor | None, rows: Tensor) -> Tensor:
        return self.whole.expand(len(rows), -1) if windows is None else windows.to(self.whole.dtype)


def _positions(new: Tensor, old: Tensor, size: tuple[int, int]) -> Tensor:
    """Positions (x, y) of the pixels of crops `new` (B, 5) in crops `old`, -1 to 1: (B, height, width, 2)."""

    def along(pixels: int, first: int, extent: int, new_sign: Tensor | int, old_sign: Tensor | int) -> Tensor:
        centres = (2 * torch.arange(pixels, device=new.device, dtype=new.dtype) + 1) / pixels - 1
        shift = 2 * (new - old)[:, first] + (new - old)[:, extent]  # twice the distance of the middles
        scale = new[:, extent] / old[:, extent] * new_sign * old_sign
        return scale[:, None] * centres + (shift / old[:, extent] * old_sign)[:, None]  # (B, pixels)

    y = along(size[0], 0, 2, 1, 1)[:, :, None].expand(-1, -1, size[1])
    x = along(size[1], 1, 3, 1 - 2 * new[:, 4], 1 - 2 * old[:, 4])[:, None].expand(-1, size[0], -1)
    return torch.stack([x, y], -1)
