"""Draw the embedded data set: plain-coated animals (A) and striped ones (B), horse-to-zebra in miniature.

    python datasets/make_stripes.py [--out datasets/stripes] [--size 64] [--train 200] [--test 20] [--seed 0]
    python datasets/make_stripes.py --coats      four domains: plain, striped, spotted and ginger coats

An animal is a skeleton of tapered limbs, joined by a smooth union; a limb's stripe phase runs along its axis.
Poses, sizes and backgrounds come from the same distributions for all coats, but no scene is shared. Beside
the images lie `masks` (255 on animals, else 0) of those for testing, and a file of the parameters that define
all.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from datasets.landscape import landscape, noise, tint
from util.arguments import integer
from util.errors import UserError, entry_point

DRAWING = 1  # raise it when the pictures change, so that existing sets are drawn again
SUPERSAMPLING = 3

# ---- the animal: it faces right, y points down, and one unit is about the length of its barrel -------------


@dataclass(frozen=True)
class Limb:
    """A cone with round ends from `start` to `end`, and the coat's parameters along it."""

    start: tuple[float, float]
    end: tuple[float, float]
    radius: tuple[float, float]
    phase: float = 0.0  # stripe phase at `start`, in turns
    rate: float = 0.0  # turns per unit along the axis
    bend: float = 0.0  # turns by which a stripe lags at the limb's edges, squared in the distance across
    tip: float = 2.0  # from this fraction of the axis on, horn or muzzle
    point: float = 0.0  # 1 on lower legs, which have a colour of their own


# Degrees. Legs: near fore, far fore, near hind, far hind; (upper, lower) part from straight down, positive
# forwards. Then neck and head from straight ahead, positive upwards.
POSES = {
    "stand": (((3, 0), (-6, -2), (-4, 4), (10, -6)), (54, -44)),
    "alert": (((0, 0), (9, 3), (-8, -4), (4, -8)), (66, -30)),
    "walk": (((24, 4), (-16, -26), (-20, -24), (24, -8)), (44, -44)),
    "trot": (((36, -14), (-24, -30), (-26, -34), (30, -12)), (50, -40)),
    "gallop": (((58, 40), (42, 6), (-38, -62), (-22, -52)), (34, -28)),
    "graze": (((16, 6), (-8, -10), (-6, -2), (12, -8)), (-50, -72)),
}


def _toward(start, degrees: float, length: float) -> tuple[float, float]:
    """The point `length` from `start`, 0 degrees straight ahead, 90 degrees straight up."""
    angle = np.radians(degrees)
    return start[0] + length * np.cos(angle), start[1] - length * np.sin(angle)


def _skeleton(rng: np.random.Generator, stripe: float) -> dict[str, list[Limb]]:
    """Limbs in layers from back to front, in a random pose; stripes repeat every `stripe` units."""
    legs, (neck, head) = POSES[list(POSES)[rng.integers(len(POSES))]]
    neck, head = neck + rng.normal(0, 5), head + rng.normal(0, 5)
    stout, rate = rng.uniform(0.92, 1.1), 1 / stripe
    rump, barrel, chest = (-0.43, -0.02), (0.0, 0.04), (0.40, 0.0)

    # The spine's phase grows towards the tail and the legs' downwards, which makes the bend of the haunch.
    torso = [
        Limb(rump, barrel, (0.255 * stout, 0.265 * stout), rate * 0.43, -rate, -2.0),
        Limb(barrel, chest, (0.265 * stout, 0.25 * stout), 0.0, -rate, -1.2),
    ]
    withers, poll = (0.44, -0.09), _toward((0.44, -0.09), neck, 0.58)
    crown = _toward(poll, neck, 0.03)
    muzzle = _toward(crown, head, 0.36)
    front = [
        Limb(withers, poll, (0.2 * stout, 0.115), -0.4 * rate, -rate, 2.0),
        Limb(crown, muzzle, (0.115, 0.068), -1.0 * rate, -1.2 * rate, 3.0, tip=0.82),
        Limb(_toward(crown, neck + 70, 0.07), _toward(crown, neck + 50, 0.21), (0.04, 0.014), -rate),
        Limb(_toward(crown, neck + 35, 0.07), _toward(crown, neck + 22, 0.2), (0.04, 0.014), -rate),
    ]
    eye = _toward(_toward(crown, head, 0.09), head + 90, 0.035)
    limbs = []
    for index, (upper, lower) in enumerate(legs):
        upper, lower = upper + rng.normal(0, 4), lower + rng.normal(0, 4)
        hind = index >= 2
        hip = (-0.46, 0.1) if hind else (0.40, 0.14)
        hip = (hip[0] + (0.07 if index % 2 else 0.0), hip[1])
        knee = _toward(hip, upper - 90, 0.40)
        hoof = _toward(knee, lower - 90 - (4 if hind else 0), 0.40)
        top = (0.2 if hind else 0.14) * stout
        start = -rate * hip[0]
        thigh = Limb(hip, knee, (top, 0.068), start, rate * 1.1)
        shank = Limb(knee, hoof, (0.066, 0.048), start + 0.44 * rate, rate * 1.2, tip=0.86, point=1.0)
        limbs.append([thigh, shank])
    swing = rng.uniform(-105, -75) - (40 if neck < 40 and legs[0][0] > 50 else 0)
    dock = (-0.62, -0.14)
    bone = _toward(dock, swing - 40, 0.2)
    behind_neck = _toward(withers, neck + 90, 0.13)
    return {
        "far": limbs[1] + limbs[3],
        "tail": [Limb(dock, bone, (0.04, 0.045)), Limb(bone, _toward(bone, swing, 0.42), (0.06, 0.035))],
        "mane": [Limb(behind_neck, _toward(crown, neck + 75, 0.09), (0.09, 0.06), -0.4 * rate, -rate)],
        "body": torso + front + limbs[0] + limbs[2],
        "eye": [Limb(eye, _toward(eye, head, 0.02), (0.014, 0.014))],
    }


def _melt(limbs: list[Limb], x: np.ndarray, y: np.ndarray, softness: float = 0.03) -> dict[str, np.ndarray]:
    """Smooth union of limbs: signed distance; and phase, tip, point and normal, averaged where limbs meet."""
    total = np.full_like(x, 1e-30)
    sums = {name: np.zeros_like(x) for name in ("phase", "tip", "point", "nx", "ny")}
    for limb in limbs:
        (ax, ay), (bx, by) = limb.start, limb.end
        length = float(np.hypot(bx - ax, by - ay))
        ux, uy = (bx - ax) / length, (by - ay) / length
        along = (x - ax) * ux + (y - ay) * uy
        across = (y - ay) * ux - (x - ax) * uy
        t = np.clip(along / length, 0, 1)
        radius = limb.radius[0] + (limb.radius[1] - limb.radius[0]) * t
        dx, dy = x - ax - t * (bx - ax), y - ay - t * (by - ay)
        weight = np.exp(np.clip((radius - np.sqrt(dx * dx + dy * dy)) / softness, -60, 30))
        total += weight
        sums["phase"] += weight * (limb.phase + limb.rate * along + limb.bend * across * across)
        sums["tip"] += weight * np.clip((t - limb.tip) * 20, 0, 1)
        sums["point"] += weight * limb.point
        sums["nx"] += weight * dx / radius
        sums["ny"] += weight * dy / radius
    return {"distance": -softness * np.log(total)} | {name: value / total for name, value in sums.items()}


HORN = np.float32([48, 42, 40])  # hooves, muzzle, eyes

# hair, mane and tail, lower legs of plain animals
HORSES = {
    "bay": ((128, 78, 44), (38, 28, 24), (44, 32, 28)),
    "brown": ((92, 62, 42), (46, 32, 26), (78, 54, 40)),
    "chestnut": ((164, 92, 46), (150, 84, 44), (158, 90, 48)),
    "sock": ((146, 84, 50), (80, 50, 34), (226, 218, 206)),
    "grey": ((158, 156, 154), (112, 110, 112), (118, 116, 116)),
    "black": ((46, 42, 44), (30, 28, 30), (40, 36, 38)),
    "cream": ((214, 184, 138), (236, 222, 194), (216, 194, 158)),
}
SPOT_SPACING = 0.19  # of the lattice that spots are scattered around


@dataclass(frozen=True)
class Coat:
    """The colours of one animal; with a pattern, also the colour of the marks that it darkens."""

    hair: np.ndarray
    mane: np.ndarray
    points: np.ndarray
    dark: np.ndarray | None = None
    pattern: Callable[[dict[str, np.ndarray], str], np.ndarray] | None = None  # (field, layer) -> 0 to 1


def _plain(rng: np.random.Generator) -> Coat:
    colours = HORSES[list(HORSES)[rng.integers(len(HORSES))]]
    return Coat(*(np.asarray(tint(rng, colour, 9)) for colour in colours))


def _striped(rng: np.random.Generator) -> Coat:
    white, dark = np.asarray(tint(rng, (238, 232, 220), 7)), np.asarray(tint(rng, (30, 25, 25), 7))
    share = rng.uniform(0.46, 0.56)

    def stripes(field: dict[str, np.ndarray], layer: str) -> np.ndarray:
        belly = 0.22 * np.clip(field["ny"] - 0.55, 0, 1) if layer == "body" else 0.0
        wave = 0.5 + 0.5 * np.cos(2 * np.pi * field["phase"])
        return np.clip((wave - (1 - share) - belly) * 5 + 0.5, 0.85 if layer == "tail" else 0, 1)

    return Coat(white, white, white, dark, stripes)


def _spotted(rng: np.random.Generator) -> Coat:
    sand, dark = np.asarray(tint(rng, (222, 178, 104), 8)), np.asarray(tint(rng, (48, 30, 20), 7))
    lattice = rng.uniform(-1, 1, (16, 16, 3))  # of each spot: shift along x and y, size; it repeats

    def spots(field: dict[str, np.ndarray], layer: str) -> np.ndarray:
        x, y = field["x"] / SPOT_SPACING, field["y"] / SPOT_SPACING
        darkness = np.zeros_like(x)
        for column, row in np.ndindex(3, 3):  # the spots of this cell and of its neighbours
            column, row = np.floor(x).astype(int) + column - 1, np.floor(y).astype(int) + row - 1
            right, down, size = np.moveaxis(lattice[column % 16, row % 16], -1, 0)
            distance = np.hypot(x - column - 0.5 - 0.22 * right, y - row - 0.5 - 0.22 * down)
            darkness = np.maximum(darkness, np.clip((0.35 + 0.05 * size - distance) / 0.12 + 0.5, 0, 1))
        return darkness

    return Coat(sand, sand, sand, dark, spots)


def _ginger(rng: np.random.Generator) -> Coat:
    hair, mane = np.asarray(tint(rng, (206, 96, 30), 9)), np.asarray(tint(rng, (236, 190, 130), 8))
    return Coat(hair, mane, hair)


COATS: dict[str, Callable[[np.random.Generator], Coat]] = {
    "plain": _plain, "striped": _striped, "spotted": _spotted, "ginger": _ginger,
}  # fmt: skip


def _colours(field: dict[str, np.ndarray], layer: str, coat: Coat, sun: float) -> np.ndarray:
    """The colours of a layer, (h, w, 3): coat with its pattern, hooves and muzzle, lit from above."""
    base = {"tail": coat.mane, "mane": coat.mane, "eye": HORN}.get(layer, coat.hair)
    colour = base + field["point"][..., None] * (coat.points - base)
    if coat.pattern and layer != "eye":
        colour = colour + coat.pattern(field, layer)[..., None] * (coat.dark - colour)
    horn = field["tip"][..., None] * 0.85
    colour = colour + horn * (HORN - colour)
    light = 0.86 - 0.24 * field["ny"] + sun * 0.1 * field["nx"]
    return colour * (light * (0.62 if layer == "far" else 1.0))[..., None]


def _draw_animal(canvas, cover, rng, coat: Coat, unit: float, centre: float, ground: float) -> None:
    """Draw one animal into `canvas` (n, n, 3) and `cover` (n, n), in place; lengths in pixels."""
    n = len(canvas)
    layers = _skeleton(rng, stripe=rng.uniform(0.165, 0.215))
    facing, slope, sun = rng.choice((-1, 1)), np.radians(rng.normal(0, 2.5)), rng.uniform(-1, 1)
    limbs = sum(layers.values(), [])
    ends = np.array([limb.start for limb in limbs] + [limb.end for limb in limbs])  # (2 * limbs, 2)
    feet = ends[:, 1].max() + 0.045
    middle = (ends[:, 0].min() + ends[:, 0].max()) / 2

    rows, columns = np.mgrid[0:n, 0:n].astype(np.float32) + 0.5
    reach = np.hypot((columns - centre) / (0.85 * unit), (rows - ground + 0.03 * unit) / (0.13 * unit))
    canvas *= 1 - 0.42 * np.clip(1.25 - reach, 0, 1)[..., None]  # the shadow on the ground

    dx, dy = facing * (columns - centre) / unit, (rows - ground) / unit
    x = np.cos(slope) * dx + np.sin(slope) * dy + middle
    y = np.cos(slope) * dy - np.sin(slope) * dx + feet
    low, high = ends.min(0) - 0.3, ends.max(0) + 0.3
    inside = (x > low[0]) & (x < high[0]) & (y > low[1]) & (y < high[1])
    hit_rows, hit_columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = np.s_[hit_rows[0] : hit_rows[-1] + 1, hit_columns[0] : hit_columns[-1] + 1]
    x, y = x[box], y[box]
    warp, dapple = 0.16 * noise(rng, n, 22, 22)[box], 1 + 0.07 * noise(rng, n, 16, 16)[box]
    for layer, limbs in layers.items():
        field = _melt(limbs, x, y) | {"x": x, "y": y}
        field["phase"] += warp
        alpha = np.clip(0.5 - field["distance"] * unit, 0, 1)
        colour = _colours(field, layer, coat, sun) * dapple[..., None]
        canvas[box] += alpha[..., None] * (colour - canvas[box])
        cover[box] = np.maximum(cover[box], alpha)


def draw_animal_scene(rng: np.random.Generator, size: int, coat: str) -> tuple[np.ndarray, np.ndarray]:
    """One picture: one animal, sometimes two, in a landscape.

    Returns the image, (size, size, 3) uint8 RGB, and the animals' mask, (size, size) bool. `coat`, of COATS,
    does not change the distribution of scenes.
    """
    n = size * SUPERSAMPLING
    canvas, horizon = landscape(rng, n)
    cover = np.zeros((n, n), np.float32)
    animals = 2 if rng.random() < 0.22 else 1
    for index in range(animals):
        if animals == 2:
            unit, centre = n * rng.uniform(0.27, 0.33), n * ((0.29, 0.71)[index] + rng.uniform(-0.05, 0.05))
        else:
            unit, centre = n * rng.uniform(0.33, 0.46), n * rng.uniform(0.42, 0.58)
        ground = n * rng.uniform(max(0.8, horizon + 0.3), 0.96)
        _draw_animal(canvas, cover, rng, COATS[coat](rng), unit, centre, ground)
    canvas *= rng.uniform(0.86, 1.1)  # exposure
    canvas = canvas.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean((1, 3))  # (size, size, 3)
    canvas += rng.normal(0, 2.0, canvas.shape)  # the grain of a sensor
    mask = cover.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean((1, 3)) >= 0.5  # (size, size)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), mask


# The coat in each folder of a set; the record of the set's parameters is NAME.json.
FOLDERS = {
    "stripes": {"trainA": "plain", "trainB": "striped", "testA": "plain", "testB": "striped"},
    "coats": {f"{phase}/{coat}": coat for phase in ("train", "test") for coat in COATS},
}


def make_set(
    name: str, out: str | Path, size: int = 64, train: int = 200, test: int = 20, seed: int = 0
) -> bool:
    """Draw the set `name` into folder `out`: `train` and `test` pictures of `size` x `size` with each coat.

    Returns whether anything was drawn: a set of the same parameters is left alone, one of others is replaced.
    The folder appears whole or not at all. Raises `UserError` if `out` holds something else.
    """
    out, file = Path(out), f"{name}.json"
    parameters = {"drawing": DRAWING, "size": size, "train": train, "test": test, "seed": seed}
    record = json.dumps(parameters) + "\n"
    if out.exists():
        if not (out / file).is_file():
            raise UserError(f"{out} is not a set drawn by this script: choose another --out")
        if (out / file).read_text() == record:
            return False

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        fresh = Path(scratch) / "set"
        for number, (folder, coat) in enumerate(FOLDERS[name].items()):
            for index in range(train if folder.startswith("train") else test):
                # a random stream for each picture, so that it does not depend on their number
                rng = np.random.default_rng([seed, number, index])
                image, mask = draw_animal_scene(rng, size, coat)
                pictures = {folder: image}
                if folder.startswith("test"):
                    pictures["masks/" + folder.removeprefix("test/")] = mask.astype(np.uint8) * 255
                for place, pixels in pictures.items():
                    (fresh / place).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(fresh / place / f"{index:04d}.png")
        (fresh / file).write_text(record)
        if out.exists():
            out.rename(Path(scratch) / "old")
        fresh.rename(out)
    return True


make_stripes, make_coats = partial(make_set, "stripes"), partial(make_set, "coats")


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--coats", action="store_true", help="draw four coats, in train/COAT and test/COAT, instead of two")
    add("--out", help="folder to draw into (datasets/stripes, or datasets/coats)")
    add("--size", type=integer(16), default=64, help="width and height in pixels, 16 or more (%(default)s)")
    add("--train", type=integer(1), default=200, help="training pictures with each coat (%(default)s)")
    add("--test", type=integer(1), default=20, help="test pictures with each coat (%(default)s)")
    add("--seed", type=integer(0), default=0, help="another seed draws other pictures (%(default)s)")
    args = parser.parse_args(argv)
    name = "coats" if args.coats else "stripes"
    out = args.out or f"datasets/{name}"
    drawn = make_set(name, out, args.size, args.train, args.test, args.seed)
    what = f"{args.train} training and {args.test} test pictures of each coat, {args.size} x {args.size}"
    print(f"{out}: drew {what}" if drawn else f"{out}: already there ({what})")


if __name__ == "__main__":
    sys.exit(main())
