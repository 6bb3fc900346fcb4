"""Draws shapes on textured backgrounds: a detection set that needs no download.

Made so that finding and naming a shape is easy, and placing its box exactly is not: shapes are
rotated, their contrast varies, edges are blurred, thin strokes cross them, tips decide the box.
Numpy only, from frozen random streams, so that a seed gives the same pixels everywhere.
"""

import math
from typing import List, NamedTuple, Tuple

import numpy as np

CLASSES = ('circle', 'square', 'triangle', 'star', 'cross', 'heart')
# The mean colour of each class, RGB: a cue that makes naming a shape the easier part.
COLOURS = (
    (220, 20, 60),
    (0, 82, 200),
    (0, 150, 70),
    (250, 170, 30),
    (106, 0, 228),
    (255, 77, 200),
)
SUPERSAMPLING = 4


class Shape(NamedTuple):
    """One drawn object.

    Attributes:
        label (int): Index into ``CLASSES``.
        polygon (np.ndarray): Outline, (V, 2), x and y in pixels; pixel (0, 0) is the unit square at
            the origin. The whole outline, also where a stroke or another shape hides a part of it.
    """

    label: int
    polygon: np.ndarray

    @property
    def box(self) -> Tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels."""
        return (*self.polygon.min(0).tolist(), *self.polygon.max(0).tolist())

    @property
    def area(self) -> float:
        """Area of the outline in square pixels."""
        x, y = self.polygon.T
        return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def outline(name: str, aspect: float = 1.0) -> np.ndarray:
    """The outline of a class around the origin, reaching out to a radius of about one.

    Args:
        name (str): One of ``CLASSES``.
        aspect (float): Height over width. Defaults to 1.

    Returns:
        np.ndarray: (V, 2).
    """

    def ring(count, radii=(1.0,)):
        angles = [2 * math.pi * i / count - math.pi / 2 for i in range(count)]
        return [
            (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a))
            for i, a in enumerate(angles)
        ]

    if name == 'circle':
        points = ring(40)
    elif name == 'square':
        points = [(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)]
    elif name == 'triangle':
        points = ring(3)
    elif name == 'star':
        points = ring(10, (1.0, 0.42))
    elif name == 'cross':
        quarter = [(0.3, -0.95), (0.3, -0.3), (0.95, -0.3)]
        points = []
        for cos, sin in ((1, 0), (0, 1), (-1, 0), (0, -1)):
            points += [(x * cos - y * sin, x * sin + y * cos) for x, y in quarter]
    elif name == 'heart':
        turns = [2 * math.pi * i / 40 for i in range(40)]
        points = [
            (
                math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                / 16,
            )
            for t in turns
        ]
    else:
        raise ValueError(f'no shape is called {name!r}; there are {", ".join(CLASSES)}')
    return np.array(points) * (1.0, aspect)


def place(points: np.ndarray, angle: float, radius: float, centre) -> np.ndarray:
    """Rotate by ``angle`` (radians), scale by ``radius`` and move to ``centre`` (x, y; pixels)."""
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]]) * radius + centre


def coverage(polygon: np.ndarray, width: int, height: int) -> Tuple[tuple, np.ndarray]:
    """How much of each pixel a polygon covers (even-odd rule), by supersampling.

    Args:
        polygon (np.ndarray): (V, 2), in pixels.
        width, height (int): Size of the image.

    Returns:
        tuple: The window of the image that the polygon lies in, as two slices (rows, columns), and
        the covered part of each pixel there, float32 in [0, 1].
    """
    x0, y0 = polygon.min(0).astype(int).clip(0, (width, height))
    x1, y1 = np.ceil(polygon.max(0)).astype(int).clip(0, (width, height))
    n = SUPERSAMPLING
    rows, columns = (y1 - y0) * n, (x1 - x0) * n
    y = (np.arange(rows) + 0.5) / n + y0
    (ax, ay), (bx, by) = polygon.T, np.roll(polygon, -1, axis=0).T
    row, edge = np.nonzero((ay <= y[:, None]) != (by <= y[:, None]))
    crossing = ax[edge] + (y[row] - ay[edge]) * (bx - ax)[edge] / (by - ay)[edge]
    column = np.ceil((crossing - x0) * n - 0.5).astype(int).clip(0, columns)
    # An outline toggles inside and outside wherever a row of samples crosses it.
    toggles = np.zeros((rows, columns + 1), np.int32)
    np.add.at(toggles, (row, column), 1)
    inside = (toggles.cumsum(1)[:, :columns] & 1).astype(np.float32)
    part = inside.reshape(y1 - y0, n, x1 - x0, n).mean((1, 3))
    return (slice(y0, y1), slice(x0, x1)), part


def texture(random: np.random.RandomState, width: int, height: int) -> np.ndarray:
    """Smooth noise of several scales, (height, width, 3), mean 0 and about unit amplitude."""
    total = np.zeros((31, 31, 3), np.float32)
    for cells, amplitude in ((3, 1.0), (7, 0.7), (15, 0.5), (31, 0.4)):
        grid = random.uniform(-amplitude, amplitude, (cells, cells, 3)).astype(np.float32)
        total += enlarge(grid, 31, 31)
    return enlarge(total, width, height)


def enlarge(grid: np.ndarray, width: int, height: int) -> np.ndarray:
    """Linear interpolation of (h, w, 3) to (height, width, 3), corners on corners."""
    for axis, size in enumerate((height, width)):
        cells = grid.shape[axis]
        at = np.linspace(0, cells - 1, size)
        low = np.minimum(at.astype(int), cells - 2)
        part = (at - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first = grid.take(low, axis)
        grid = first + part * (grid.take(low + 1, axis) - first)
    return grid


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of an (H, W, 3) image, with ``sigma`` in pixels."""
    reach = math.ceil(2.5 * sigma)
    kernel = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(-reach, reach + 1)]
    for axis in (0, 1):
        size = image.shape[axis]
        padded = np.pad(image, [(reach, reach) if a == axis else (0, 0) for a in range(3)], 'edge')
        padded = padded.swapaxes(0, axis)
        image = np.zeros((size, *padded.shape[1:]), np.float32)
        for i, weight in enumerate(kernel):
            image += np.float32(weight / sum(kernel)) * padded[i : i + size]
        image = image.swapaxes(0, axis)
    return image


def arrange(random: np.random.RandomState, width: int, height: int) -> List[Shape]:
    """Choose between two and eight shapes that lie within the image and hardly overlap."""
    side = min(width, height)
    shapes: List[Shape] = []
    for _ in range(random.randint(2, 9)):
        label = random.randint(len(CLASSES))
        points = outline(CLASSES[label], aspect=random.uniform(0.6, 1.0))
        for _attempt in range(20):
            radius = side * math.exp(random.uniform(math.log(0.08), math.log(0.26)))
            angle, centre = random.uniform(0, 2 * math.pi), random.uniform(size=2) * (width, height)
            shape = Shape(label, place(points, angle, radius, centre))
            left, top, right, bottom = shape.box
            within = left >= 1 and top >= 1 and right <= width - 1 and bottom <= height - 1
            if within and all(_overlap(shape.box, other.box) < 0.15 for other in shapes):
                shapes.append(shape)
                break
    return shapes


def _overlap(a, b) -> float:
    """Intersection of two boxes over the area of the smaller one."""
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    shared *= max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))


def draw(
    random: np.random.RandomState, width: int, height: int
) -> Tuple[np.ndarray, np.ndarray, List[Shape]]:
    """Draw one image.

    Args:
        random (np.random.RandomState): The image's own random stream.
        width, height (int): Size in pixels, at least 32 each.

    Returns:
        tuple: The image (height, width, 3) as uint8 RGB; the semantic mask (height, width) as
        uint8, 0 for the background and label + 1 for a shape; the shapes, later ones on top.
    """
    shapes = arrange(random, width, height)
    base = random.uniform(60, 195) + random.normal(size=3).astype(np.float32) * 15
    image = base + texture(random, width, height) * np.float32(random.uniform(10, 35))
    mask = np.zeros((height, width), np.uint8)
    for shape in shapes:
        window, part = coverage(shape.polygon, width, height)
        colour = COLOURS[shape.label] + random.normal(size=3) * 20
        grain = texture(random, *part.shape[::-1]) * random.uniform(5, 25)
        opacity = part[..., None] * random.uniform(0.7, 1.0)
        image[window] += opacity * (colour + grain - image[window])
        mask[window][part > 0.5] = shape.label + 1
    for _ in range(random.randint(0, 5)):
        _stroke(random, image)
    image = blur(image, random.uniform(0.5, 1.3))
    image += random.normal(size=image.shape) * random.uniform(2, 7)
    return np.rint(image).clip(0, 255).astype(np.uint8), mask, shapes


def _stroke(random: np.random.RandomState, image: np.ndarray) -> None:
    """Draw a thin line across whatever is there, in place."""
    height, width = image.shape[:2]
    half = (random.uniform(10, 60), random.uniform(0.5, 1.5))
    bar = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    centre = random.uniform(size=2) * (width, height)
    window, part = coverage(place(bar, random.uniform(0, math.pi), 1.0, centre), width, height)
    opacity = part[..., None] * random.uniform(0.4, 1.0)
    image[window] += opacity * (random.uniform(20, 235, 3) - image[window])
