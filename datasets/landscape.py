"""Backgrounds of the drawn set: sky, hills and textured ground, with trees, fences and the like.

A translation must keep the background's texture, hence fences, trunks, ripples and blades of grass. Colours
are RGB in 0..255; places and lengths are fractions of the picture, from its top left.
"""

import numpy as np
from PIL import Image, ImageDraw


def noise(rng: np.random.Generator, n: int, rows: int, columns: int) -> np.ndarray:
    """Smooth random field (n, n), about -1 to 1, with features of 1/rows by 1/columns of the picture."""
    grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((n, n), Image.Resampling.BICUBIC))


def tint(rng: np.random.Generator, colour, spread: float = 12.0) -> tuple[int, int, int]:
    """A random colour near `colour`: mostly lighter or darker, slightly of another hue."""
    shifted = np.asarray(colour) + rng.normal(0, spread) + rng.normal(0, spread / 3, 3)
    return tuple(int(c) for c in np.clip(shifted, 0, 255))


def _foliage(draw, rng, x, y, width, height, colour, n, leaves=16) -> None:
    """A crown or bush: overlapping ellipses, lighter towards the top, filling width x height round (x, y)."""
    for depth in np.linspace(1, -1, leaves):
        cx, cy = x + rng.uniform(-0.36, 0.36) * width, y + depth * 0.3 * height
        rx, ry = width * rng.uniform(0.12, 0.26), height * rng.uniform(0.16, 0.28)
        box = [(cx - rx) * n, (cy - ry) * n, (cx + rx) * n, (cy + ry) * n]
        draw.ellipse(box, fill=tint(rng, np.asarray(colour) - 22 * depth, 8))


def _trees(draw, rng, n, horizon) -> None:
    green = tint(rng, (62, 92, 50), 14)
    for x in np.arange(-0.1, 1.1, rng.uniform(0.09, 0.4)):
        height = rng.uniform(0.12, 0.3)
        trunk = [(x - 0.008) * n, (horizon - height / 2) * n, (x + 0.008) * n, (horizon + 0.01) * n]
        draw.rectangle(trunk, (72, 56, 42))
        _foliage(draw, rng, x, horizon - height * 0.55, height * rng.uniform(0.8, 1.3), height, green, n)


def _acacias(draw, rng, n, horizon) -> None:
    for x in rng.uniform(0, 1, rng.integers(1, 4)):
        height, foot = rng.uniform(0.16, 0.3), horizon + rng.uniform(0, 0.03)
        top = foot - height
        for lean in (-0.5, -0.15, 0.3):
            draw.line([x * n, foot * n, (x + lean * height) * n, top * n], (78, 60, 46), max(1, n // 90))
        _foliage(draw, rng, x, top, height * 1.9, height * 0.36, tint(rng, (92, 104, 56)), n)


def _bushes(draw, rng, n, horizon) -> None:
    green = tint(rng, (96, 108, 60), 16)
    for _ in range(rng.integers(3, 9)):
        y = horizon + rng.uniform(0, 0.35) ** 2 * 2
        width = rng.uniform(0.06, 0.14) * (0.8 + 2 * (y - horizon))
        _foliage(draw, rng, rng.uniform(0, 1), y, width, width * 0.7, green, n, leaves=9)


def _trunks(draw, rng, n, horizon) -> None:
    _foliage(draw, rng, 0.5, horizon - 0.08, 1.5, 0.3, tint(rng, (52, 74, 44)), n, leaves=26)
    for x in rng.uniform(0, 1, rng.integers(3, 9)):
        width, foot = rng.uniform(0.008, 0.028), horizon + rng.uniform(-0.01, 0.1)
        draw.rectangle([(x - width) * n, 0, (x + width) * n, foot * n], tint(rng, (84, 68, 54)))
        draw.rectangle([(x + width * 0.2) * n, 0, (x + width) * n, foot * n], tint(rng, (58, 46, 38), 5))
    _foliage(draw, rng, 0.5, 0.02, 1.6, 0.2, tint(rng, (64, 92, 52)), n, leaves=26)


def _fence(draw, rng, n, horizon) -> None:
    wood = tint(rng, ((228, 224, 214), (112, 84, 60), (74, 60, 48))[rng.integers(3)])
    top, height, slope = horizon + rng.uniform(-0.08, 0.06), rng.uniform(0.1, 0.2), rng.uniform(-0.08, 0.08)
    thick = max(1, round(n * rng.uniform(0.012, 0.02)))
    for rail in np.linspace(0.15, 0.75, rng.integers(2, 4)):
        y = top + rail * height
        draw.line([0, y * n, n, (y + slope) * n], wood, thick)
    for x in np.arange(rng.uniform(0, 0.1), 1, rng.uniform(0.1, 0.22)):
        y = top + slope * x
        draw.rectangle([x * n, y * n, x * n + thick * 1.3, (y + height) * n], wood)


def _rocks(draw, rng, n, horizon) -> None:
    for _ in range(rng.integers(2, 7)):
        y, x = horizon + rng.uniform(0.02, 0.5), rng.uniform(0, 1)
        width, grey = rng.uniform(0.03, 0.1), np.asarray(tint(rng, (128, 116, 100)))
        for lift, light in ((0, -30), (0.25, 8)):
            left, right = x - width, x + width * (1 - lift)
            top, bottom = y - width * (0.5 + lift), y + width * (0.4 - lift)
            draw.ellipse([left * n, top * n, right * n, bottom * n], fill=tuple(int(c) for c in grey + light))


def _water(draw, rng, n, horizon) -> None:
    depth, blue = rng.uniform(0.1, 0.22), np.asarray(tint(rng, (88, 130, 162)))
    draw.rectangle([0, horizon * n, n, (horizon + depth) * n], tuple(int(c) for c in blue))
    for _ in range(40):
        x, y, light = rng.uniform(-0.1, 1), horizon + depth * rng.uniform(0.02, 0.95), rng.choice((-22, 30))
        ripple = [x * n, y * n, (x + rng.uniform(0.05, 0.25)) * n, y * n]
        draw.line(ripple, tuple(int(c) for c in blue + light), max(1, n // 120))


def _grass(draw, rng, n, horizon) -> None:
    straw = tint(rng, (168, 152, 88), 20)
    for _ in range(120):
        x, y = rng.uniform(0, 1), horizon + (1 - horizon) * rng.uniform(0.15, 1.05)
        height = 0.03 + 0.09 * (y - horizon)
        lean = rng.normal(0, 0.3) * height
        draw.line([x * n, y * n, (x + lean) * n, (y - height) * n], tint(rng, straw, 16), max(1, n // 130))


# Kinds of places: the sky, its haze at the horizon, the ground at the horizon and near, what may stand there.
SCENES = (
    # meadow, savanna, desert, shore
    ((92, 146, 214), (196, 220, 240), (122, 158, 92), (74, 122, 48), (_fence, _trees, _bushes)),
    ((128, 170, 212), (226, 224, 204), (198, 176, 112), (166, 132, 70), (_acacias, _bushes, _grass)),
    ((110, 164, 220), (238, 222, 192), (224, 192, 142), (204, 158, 104), (_rocks, _bushes)),
    ((120, 168, 210), (214, 226, 232), (92, 132, 158), (140, 138, 92), (_water, _bushes, _grass)),
    # wood, dusk, paddock, overcast
    ((150, 178, 170), (188, 204, 178), (86, 112, 62), (104, 118, 62), (_trunks, _bushes, _grass)),
    ((92, 96, 150), (244, 178, 122), (138, 112, 84), (96, 82, 54), (_acacias, _trees, _rocks)),
    ((150, 164, 184), (212, 214, 212), (156, 140, 112), (172, 146, 112), (_fence, _trees)),
    ((148, 156, 166), (206, 208, 206), (110, 134, 88), (90, 114, 60), (_trees, _fence, _grass)),
)


def landscape(rng: np.random.Generator, n: int) -> tuple[np.ndarray, float]:
    """A landscape (n, n, 3) float32 in 0..255, and the height of its horizon as a fraction from the top."""
    *colours, props = SCENES[rng.integers(len(SCENES))]
    sky, haze, far, near = (np.asarray(tint(rng, colour), np.float32) for colour in colours)
    horizon = rng.uniform(0.26, 0.52)
    y = np.linspace(0, 1, n, dtype=np.float32)[:, None, None]  # (n, 1, 1)

    clouds = np.clip(noise(rng, n, 7, 4) + rng.uniform(-0.6, 0.4), 0, 1)[..., None]  # (n, n, 1)
    above = sky + (haze - sky) * np.clip(y / horizon, 0, 1)
    above = above + (244 - above) * clouds * 0.55
    depth = np.clip((y - horizon) / (1 - horizon), 0, 1)
    patches = 16 * noise(rng, n, 9, 5) + 13 * noise(rng, n, 26, 18) + 12 * noise(rng, n, 64, 50)
    below = far + (near - far) * depth + patches[..., None] * (0.4 + 0.6 * depth)

    skyline = noise(rng, n, 1, rng.integers(4, 9))[:1, :, None]  # (1, n, 1)
    ridge = horizon - rng.uniform(0, 0.16) * (0.6 + skyline)
    hills = np.where(y > ridge, haze * 0.55 + far * 0.35, above)
    picture = np.where(y > horizon, below, hills)

    canvas = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for prop in props:
        if rng.random() < 0.6:
            prop(draw, rng, n, horizon)
    return np.asarray(canvas, np.float32), horizon
