"""Draws bright rectangles, turned by any angle, on dark noise: an oriented detection set.

Finding and naming a rectangle is easy; a box without an angle covers a third of a slanted one.
Numpy only, from frozen random streams, so that a seed gives the same pixels everywhere.
"""

import math
from typing import List, NamedTuple, Tuple

import numpy as np

# Class -> mean colour, RGB.
COLOURS = dict(orange=(235, 140, 40), blue=(60, 130, 235))
CLASSES = tuple(COLOURS)
ASPECT = 3  # length over breadth
LENGTHS = (0.22, 0.42)  # of the image's shorter side
SUPERSAMPLING = 4


class Rectangle(NamedTuple):
    """One drawn object.

    Attributes:
        label (int): Index into ``CLASSES``.
        corners (np.ndarray): (4, 2), x and y in pixels; pixel (0, 0) is the unit square at the origin.
    """

    label: int
    corners: np.ndarray


def draw(
    random: np.random.RandomState, width: int, height: int
) -> Tuple[np.ndarray, List[Rectangle]]:
    """Draw one image.

    Args:
        random (np.random.RandomState): Where chance comes from.
        width, height (int): In pixels.

    Returns:
        tuple: The image, (height, width, 3), uint8, RGB, and one to four rectangles that lie inside
        of it and apart from each other.
    """
    image = random.normal(45, 18, (height, width, 3)) + random.uniform(-20, 20, 3)
    wanted, drawn, circles = random.randint(1, 5), [], []
    for _ in range(50):  # attempts: a crowded image gets fewer than wanted
        length = random.uniform(*LENGTHS) * min(width, height)
        breadth, angle = length / ASPECT, random.uniform(0, math.pi)
        radius = math.hypot(length, breadth) / 2
        centre = np.array([random.uniform(radius, side - radius) for side in (width, height)])
        label = random.randint(len(CLASSES))
        colour = np.array(COLOURS[CLASSES[label]]) + random.normal(0, 18, 3)
        if any(np.hypot(*(centre - c)) < radius + r for c, r in circles):
            continue
        along = np.array([math.cos(angle), math.sin(angle)])
        across = np.array([-along[1], along[0]])
        left, top = np.floor(centre - radius).astype(int)
        right, bottom = np.ceil(centre + radius).astype(int)
        cover = coverage(centre, along * length / 2, across * breadth / 2, left, top, right, bottom)
        window = image[top:bottom, left:right]
        window += (colour + random.normal(0, 12, window.shape) - window) * cover
        drawn.append(Rectangle(label, corners(centre, along * length / 2, across * breadth / 2)))
        circles.append((centre, radius))
        if len(drawn) == wanted:
            break
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8), drawn


def coverage(centre, along, across, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """How much of each pixel of a window a rectangle covers, (height, width, 1).

    ``along`` and ``across`` lead from its centre to the middle of its sides.
    """
    x = left + (np.arange((right - left) * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - centre[0]
    y = top + (np.arange((bottom - top) * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - centre[1]
    inside = True
    for half in (along, across):
        inside = inside & (np.abs(x * half[0] + y[:, None] * half[1]) < half @ half)
    cells = (bottom - top, SUPERSAMPLING, right - left, SUPERSAMPLING)
    return inside.reshape(cells).mean((1, 3))[..., None]


def corners(centre, along, across) -> np.ndarray:
    """The corners of a rectangle in order, (4, 2)."""
    return np.stack(
        [centre + a * along + b * across for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    )
