"""Where small images come from: sprites drawn here, scikit-learn's digits, and crops of its two photographs.

Every source gives a list of dicts: ``pixels`` (whole numbers 0 to 255, channel after channel), ``condition`` (two
tokens, numbered from 1; 0: none), ``factors`` (the two as words), ``entity`` (both together) and ``planted``.
"""

from __future__ import annotations

import numpy as np

COLOURS = {"red": (230, 40, 40), "green": (40, 190, 70), "blue": (60, 90, 240), "yellow": (240, 210, 50),
           "violet": (190, 70, 210)}  # fmt: skip
SHAPES = ("disc", "square", "triangle", "cross", "ring")
RARE = "striped"  # a sixth colour, of which there are few: red and white stripes
SIZE, FINER = 12, 4  # pixels a side, and points a pixel's side at which a sprite is drawn before they are averaged


def inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points of a shape of radius one about the origin, y upwards, bool like ``x``."""
    radius = np.hypot(x, y)
    if shape == "disc":
        return radius < 1
    if shape == "ring":
        return (radius < 1) & (radius > 0.5)
    if shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.85
    if shape == "triangle":
        return (y > -0.7) & (y < 1 - 1.7 * abs(x))
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1)
    raise ValueError(f"shape {shape!r}; one of {SHAPES}.")


def draw(colour: str, shape: str, rng: np.random.Generator) -> list[int]:
    """One sprite on black, anti-aliased, its place, size, tilt and brightness drawn: 3 x 12 x 12 numbers."""
    x0, y0 = rng.uniform(-1.2, 1.2, 2)
    radius, tilt, light = rng.uniform(3.4, 4.6), rng.uniform(-0.25, 0.25), rng.uniform(0.8, 1.0)
    centres = (np.arange(SIZE * FINER) + 0.5) / FINER - SIZE / 2
    x, y = np.meshgrid((centres - x0) / radius, -(centres - y0) / radius)
    x, y = np.cos(tilt) * x - np.sin(tilt) * y, np.sin(tilt) * x + np.cos(tilt) * y
    covered = inside(shape, x, y).astype(float)
    paint = np.broadcast_to(np.reshape(COLOURS.get(colour, (255, 255, 255)), (3, 1, 1)), (3, *x.shape)).astype(float)
    if colour == RARE:
        white = np.sin(2 * np.pi * (y + rng.uniform()) / 0.8) > 0
        paint = np.where(white, paint, np.reshape(COLOURS["red"], (3, 1, 1)))
    fine = light * covered * paint
    return fine.reshape(3, SIZE, FINER, SIZE, FINER).mean((2, 4)).round().astype(int).ravel().tolist()


def sprite(colour: str, shape: str, rng: np.random.Generator, planted: str = "") -> dict:
    condition = [[*COLOURS, RARE].index(colour) + 1, SHAPES.index(shape) + 1]
    named = {"factors": [colour, shape], "entity": f"{colour} {shape}", "planted": planted}
    return {"pixels": draw(colour, shape, rng), "condition": condition, **named}


def seen(colour: str, shape: str) -> bool:
    """Whether a combination is trained on: the diagonal of the grid of colours and shapes is not."""
    return [*COLOURS].index(colour) != SHAPES.index(shape)


def sprites(settings: dict, rng: np.random.Generator) -> tuple[list[dict], list[dict]]:
    """``(documents, probes)``: ``each`` images of every trained combination, ``copies`` of them copies of another, and
    ``exemplars`` of the rare colour. Probes, each with its ``kind``: ``held_out`` and ``validation`` (trained
    combinations), ``unseen`` (the diagonal) and ``rare``.
    """
    cells = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    trained = [cell for cell in cells if seen(*cell)]
    documents = [sprite(*cell, rng) for cell in trained for _ in range(settings["each"])]
    for place in rng.permutation(len(trained))[: settings["copies"]]:
        first = place * settings["each"]
        documents[first + 1] = documents[first] | {"planted": "copy"}
        documents[first]["planted"] = "copied"
    documents += [sprite(RARE, SHAPES[i % len(SHAPES)], rng, "exemplar") for i in range(settings["exemplars"])]
    probes = [
        sprite(*trained[i % len(trained)], rng) | {"kind": kind}
        for kind in ("held_out", "validation")
        for i in range(settings[kind])
    ]
    diagonal = [cell for cell in cells if not seen(*cell)]
    probes += [sprite(*cell, rng) | {"kind": "unseen"} for cell in diagonal for _ in range(settings["unseen"])]
    rare = [sprite(RARE, SHAPES[i % len(SHAPES)], rng) for i in range(settings["unseen"])]
    return documents, probes + [row | {"kind": "rare"} for row in rare]


def digits(settings: dict, rng: np.random.Generator) -> tuple[list[dict], list[dict]]:
    """Scikit-learn's 8x8 digits, one token each; images beyond ``train`` and ``held_out`` are for validation."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(images))
    rows = [
        {"pixels": (images[i] * 255 / 16).round().astype(int).tolist(), "condition": [int(labels[i]) + 1, 0],
         "factors": [str(labels[i]), ""], "entity": str(labels[i]), "planted": ""}
        for i in order
    ]  # fmt: skip
    return _cut(rows, settings)


def photos(settings: dict, rng: np.random.Generator) -> tuple[list[dict], list[dict]]:
    """Crops of scikit-learn's two photographs at a quarter of their size; the tokens are the photograph and the third
    of its height. Training crops come from the left three quarters, probes from the rest.
    """
    from sklearn.datasets import load_sample_images

    found, wide = [], 4 * SIZE
    pictures = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
    thirds = ("top", "middle", "bottom")
    for i in range(settings["train"] + settings["held_out"] + settings["validation"]):
        place, third = i % 2, i // 2 % 3
        name, picture = [*pictures.items()][place]
        (height, width), edge = picture.shape[:2], int(0.75 * picture.shape[1])
        left = rng.integers(0, edge - wide) if i < settings["train"] else rng.integers(edge, width - wide)
        top = min(height * third // 3 + rng.integers(0, height // 3), height - wide)
        crop = picture[top : top + wide, left : left + wide].reshape(SIZE, 4, SIZE, 4, 3).mean((1, 3))
        row = {"pixels": crop.transpose(2, 0, 1).round().astype(int).ravel().tolist(), "planted": ""}
        row |= {"condition": [place + 1, third + 1], "factors": [name, thirds[third]]}
        found.append(row | {"entity": " ".join(row["factors"])})
    return _cut(found, settings)


def _cut(rows: list[dict], settings: dict) -> tuple[list[dict], list[dict]]:
    n, held = settings["train"], settings["held_out"]
    probes = rows[n : n + held + settings["validation"]]
    return rows[:n], [row | {"kind": "held_out" if i < held else "validation"} for i, row in enumerate(probes)]
