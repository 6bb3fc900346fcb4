"""Draw the method figure of every paper, docs/images/PAPER.svg.

    python docs/figures.py              # all of them
    python docs/figures.py volo kvt     # some

A figure is a function of the paper's short name that places boxes by their centres and joins them. Grey boxes are
what the host has, or what is frozen; orange ones what the paper adds; blue ones data; white ones with a broken
border losses.
"""

import argparse
import sys
from html import escape
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

IMAGES = Path(__file__).resolve().parent / 'images'
WIDTH = 720
SIZE, LINE = 13, 16  # of the letters, and from line to line
FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
GREY, ORANGE, BLUE, BLACK = '#6b7280', '#b45309', '#1d4f91', '#1f2937'
STYLES = dict(
    stock=f'fill="#f0f1f3" stroke="{GREY}"',
    new=f'fill="#fdebd3" stroke="{ORANGE}"',
    data=f'fill="#e1ecf8" stroke="{BLUE}"',
    loss=f'fill="#ffffff" stroke="{ORANGE}" stroke-dasharray="4 3"',
)
CELLS = dict(g='#d3d6db', o='#f2b56b', b='#9dbfe6', w='#ffffff')
Point = Tuple[float, float]
FIGURES: Dict[str, Callable[[], 'Figure']] = {}


def figure(function: Callable[[], 'Figure']) -> Callable[[], 'Figure']:
    """Decorator: the function of this name draws the figure of that paper."""
    FIGURES[function.__name__] = function
    return function


def text_width(text: str, size: float = SIZE) -> float:
    """About how wide a line is, on the wide side: fonts differ from reader to reader."""
    narrow, wide = "iljtfrI.,:;'|()[]! ", 'mwMW%→⊙'
    # In whole hundredths: sums of fractions are rounded differently from Python 3.12 on.
    percent = sum(
        33 if c in narrow else 92 if c in wide else 68 if c.isupper() else 57 for c in text
    )
    return percent * size / 100


class Box:
    """A labelled rectangle, by its centre."""

    def __init__(self, x: float, y: float, width: float, height: float, text: str = '') -> None:
        self.x, self.y, self.width, self.height, self.text = x, y, width, height, text

    @property
    def edges(self) -> Tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        w, h = self.width / 2, self.height / 2
        return self.x - w, self.y - h, self.x + w, self.y + h


class Figure:
    """A drawing, 720 units wide.

    Args:
        title (str): Read out to those who do not see the drawing.
        height (int): Of the drawing.
    """

    def __init__(self, title: str, height: int) -> None:
        self.title, self.height = title, height
        self.boxes: Dict[str, Box] = {}
        self.notes: List[Box] = []
        self.parts: List[str] = []

    def box(
        self,
        key: str,
        text: str,
        x: float,
        y: float,
        kind: str = 'stock',
        width: Optional[float] = None,
        height: Optional[float] = None,
    ) -> Box:
        """Place a box; by default as large as its text."""
        lines = text.split('\n')
        width = width or max(map(text_width, lines)) + 16
        height = height or LINE * len(lines) + 12
        box = self.boxes[key] = Box(x, y, width, height, text)
        left, top = box.edges[:2]
        radius = 12 if kind in ('data', 'loss') else 3
        self.parts.append(
            f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="{radius}" {STYLES[kind]}/>'
        )
        self.text(text, x, y)
        return box

    def row(self, y: float, *items, left: float = 15, right: float = WIDTH - 15) -> None:
        """Boxes ``(key, text, kind)`` side by side, evenly spaced, each joined to the next."""
        widths = [max(map(text_width, text.split('\n'))) + 16 for _, text, _ in items]
        gap = (right - left - sum(widths)) / max(len(items) - 1, 1)
        for (key, text, kind), width in zip(items, widths):
            self.box(key, text, left + width / 2, y, kind, width)
            left += width + gap
        self.chain(*(key for key, _, _ in items))

    def text(
        self,
        text: str,
        x: float,
        y: float,
        anchor: str = 'middle',
        color: str = BLACK,
        size: float = SIZE,
        style: str = '',
    ) -> None:
        """Lines of text around a point."""
        lines = text.split('\n')
        first = y - LINE * (len(lines) - 1) / 2 + 0.35 * size
        for i, line in enumerate(lines):
            self.parts.append(
                f'<text x="{x:g}" y="{first + LINE * i:g}" text-anchor="{anchor}" font-size="{size}" '
                f'fill="{color}"{style}>{escape(line)}</text>'
            )

    def note(self, text: str, x: float, y: float, anchor: str = 'start') -> None:
        """A remark, without a box."""
        lines = text.split('\n')
        width = max(text_width(line, 12) for line in lines)
        middle = x + width / 2 if anchor == 'start' else x
        self.notes.append(Box(middle, y, width, LINE * len(lines), text))
        self.text(text, x, y, anchor, GREY, 12)

    def frame(self, text: str, left: float, top: float, right: float, bottom: float) -> None:
        """A frame around boxes, with a heading."""
        self.parts.append(
            f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" rx="6" fill="none" '
            f'stroke="{GREY}" stroke-dasharray="2 3"/>'
        )
        self.text(text, left + 10, top + 13, 'start', GREY, 12, ' font-weight="bold"')

    def operator(self, key: str, sign: str, x: float, y: float) -> None:
        """A sum, a product, ..."""
        self.boxes[key] = Box(x, y, 22, 22)
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="11" fill="#ffffff" stroke="{BLACK}"/>')
        self.text(sign, x, y, size=15)

    def grid(self, x: float, y: float, rows: Sequence[str], cell: float = 12) -> None:
        """Cells from the upper left corner on: ``g``rey, ``o``range, ``b``lue or ``w``hite."""
        for i, row in enumerate(rows):
            for j, letter in enumerate(row):
                self.parts.append(
                    f'<rect x="{x + j * cell:g}" y="{y + i * cell:g}" width="{cell:g}" height="{cell:g}" '
                    f'fill="{CELLS[letter]}" stroke="{GREY}" stroke-width="0.6"/>'
                )

    def bars(
        self, x: float, y: float, heights: Sequence[float], color: str, step: float = 9
    ) -> None:
        """A distribution, standing on its base line."""
        for i, height in enumerate(heights):
            self.parts.append(
                f'<rect x="{x + step * i:g}" y="{y - height:g}" width="{step - 2:g}" height="{height:g}" '
                f'fill="{color}"/>'
            )
        self.parts.append(
            f'<path d="M{x - 2:g} {y:g}H{x + step * len(heights):g}" stroke="{GREY}"/>'
        )

    def rectangle(
        self, x: float, y: float, width: float, height: float, degrees: float, color: str
    ) -> None:
        """An outline, turned clockwise about its centre."""
        self.parts.append(
            f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" height="{height:g}" fill="none" '
            f'stroke="{color}" stroke-width="2" transform="rotate({degrees:g} {x:g} {y:g})"/>'
        )

    def chain(self, *keys: str) -> None:
        """Arrows from each to the next."""
        for one, other in zip(keys, keys[1:]):
            self.arrow(one, other)

    def arrow(
        self,
        start: str,
        end: str,
        route: str = '',
        text: str = '',
        bend: Optional[float] = None,
        shift: Tuple[float, float] = (0, 0),
        both: bool = False,
        broken: bool = False,
    ) -> None:
        """An arrow between two boxes.

        Args:
            start, end (str): The boxes.
            route (str): Directions in turn, ``h``orizontal and ``v``ertical: ``'h'``, ``'vh'``, ``'hvh'``, ... By
                default as straight as may be.
            text (str): Stands at its longest part.
            bend (float, optional): Where ``'hvh'`` (an x) or ``'vhv'`` (a y) bends; beyond both boxes it leads around
                them. Defaults to halfway.
            shift (tuple[float, float]): Moves the two ends along the sides that they are at.
            both (bool): Whether there is a head at either end.
            broken (bool): Whether the line is broken: no gradient passes here.
        """
        a, b = self.boxes[start], self.boxes[end]
        route = route or default_route(a, b)
        points = waypoints(a, b, route, bend, shift)
        path = f'M{points[0][0]:g} {points[0][1]:g}' + ''.join(
            f'L{x:g} {y:g}' for x, y in points[1:]
        )
        extra = ' stroke-dasharray="5 3"' * broken + ' marker-start="url(#head)"' * both
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{BLACK}" stroke-width="1.2" marker-end="url(#head)"{extra}/>'
        )
        if text:
            self._name(text, points)

    def _name(self, text: str, points: Sequence[Point]) -> None:
        pieces = list(zip(points, points[1:]))
        (x0, y0), (x1, y1) = max(
            pieces, key=lambda p: abs(p[0][0] - p[1][0]) + abs(p[0][1] - p[1][1])
        )
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        if y0 == y1:
            self.text(text, x, y - 3 - LINE / 2 * len(text.split('\n')), color=GREY, size=12)
        else:
            self.text(text, x + 6, y, 'start', GREY, 12)

    def svg(self) -> str:
        """The file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" font-family="{FONT}" role="img">\n<title>{escape(self.title)}</title>\n'
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{BLACK}"/></marker></defs>\n'
            f'<rect width="{WIDTH}" height="{self.height}" rx="8" fill="#ffffff"/>\n'
        )
        return head + '\n'.join(self.parts) + '\n</svg>\n'


def default_route(a: Box, b: Box) -> str:
    """Straight where the boxes face each other, else with two bends."""
    (left, top, right, bottom), (left_b, top_b, right_b, bottom_b) = a.edges, b.edges
    if min(bottom, bottom_b) > max(top, top_b):
        return 'h'
    if min(right, right_b) > max(left, left_b):
        return 'v'
    return 'hvh'


def waypoints(
    a: Box, b: Box, route: str, bend: Optional[float], shift: Tuple[float, float]
) -> Sequence[Point]:
    """The corners of an arrow from the side of one box to the side of another."""
    ends = []
    for box, other, direction, along in ((a, b, route[0], shift[0]), (b, a, route[-1], shift[1])):
        left, top, right, bottom = box.edges
        if direction == 'h':
            towards = other.x if bend is None else bend
            ends.append((right if towards > box.x else left, box.y + along))
        else:
            towards = other.y if bend is None else bend
            ends.append((box.x + along, bottom if towards > box.y else top))
    (x0, y0), (x1, y1) = ends
    if route == 'h':  # level with the smaller box
        y = y0 if a.height <= b.height else y1
        return [(x0, y), (x1, y)]
    if route == 'v':
        x = x0 if a.width <= b.width else x1
        return [(x, y0), (x, y1)]
    if route == 'hv':
        return [(x0, y0), (x1, y0), (x1, y1)]
    if route == 'vh':
        return [(x0, y0), (x0, y1), (x1, y1)]
    if route == 'hvh':
        x = (x0 + x1) / 2 if bend is None else bend
        return [(x0, y0), (x, y0), (x, y1), (x1, y1)]
    if route == 'vhv':
        y = (y0 + y1) / 2 if bend is None else bend
        return [(x0, y0), (x0, y), (x1, y), (x1, y1)]
    raise ValueError(f'no such route: {route!r}')


# Backbones


@figure
def volo() -> Figure:
    f = Figure('VOLO: outlookers on fine tokens, then transformer blocks and class attention', 250)
    f.row(
        45,
        ('image', 'image', 'data'),
        ('stem', 'conv stem,\npatches of 8', 'stock'),
        ('outlook', 'outlookers\non 28×28', 'new'),
        ('down', '2×2 conv,\npositions', 'stock'),
        ('blocks', 'transformer\nblocks on 14×14', 'stock'),
        ('class', 'class\nattention', 'stock'),
        ('out', 'class token,\npatch tokens', 'data'),
    )
    f.frame('outlook attention, for each window of 3×3', 15, 92, 705, 238)
    f.grid(35, 125, ['gggg', 'gbbb', 'gbob', 'gbbb'], 17)
    f.note('centre, window', 69, 212, 'middle')
    f.box('centre', 'centre: mean\nof 2×2 tokens', 185, 142, 'data')
    f.box('linear', 'linear layer,\nsoftmax', 310, 142, 'new')
    f.box('weights', '9 × 9 weights\nin each head', 435, 142, 'data')
    f.box('values', '9 values\nof the window', 185, 205, 'data')
    f.operator('product', '×', 435, 205)
    f.box('fold', 'added at their places;\nwindows overlap', 605, 205, 'new')
    f.chain('centre', 'linear', 'weights', 'product', 'fold')
    f.arrow('values', 'product', text='linear')
    f.note('no queries, no keys', 505, 142)
    return f


@figure
def vip() -> Figure:
    f = Figure(
        'Permute-MLP of Vision Permutator: linear layers along height, width and channels', 270
    )
    f.box('x', 'tokens\nH × W × C', 60, 102, 'data')
    f.frame('three branches', 130, 12, 360, 190)
    f.boxes['branches'] = Box(245, 101, 230, 178)
    f.box('h', 'height: linear layer over\nrows, within a segment', 245, 55, 'new', 195)
    f.box('w', 'width: linear layer over\ncolumns, within a segment', 245, 109, 'new', 195)
    f.box('c', 'channels: linear layer', 245, 159, 'new', 195)
    f.box(
        'weights',
        'mean over the map of their sum, MLP,\nsoftmax: a weight for each branch and channel',
        245,
        238,
        'new',
    )
    f.box('sum', 'weighted sum\nof the three', 510, 102, 'new')
    f.box('out', 'linear\nlayer', 640, 102)
    f.arrow('x', 'branches')
    f.arrow('branches', 'sum')
    f.arrow('branches', 'weights')
    f.arrow('weights', 'sum', 'hv')
    f.arrow('sum', 'out')
    f.note('a segment: C / H channels', 420, 30)
    return f


@figure
def refiner() -> Figure:
    f = Figure('Refiner: every second layer refines the attention map of the layer before it', 310)
    f.frame('plain layer', 15, 15, 705, 130)
    f.box('qk', 'queries, keys', 80, 95)
    f.box('soft', 'softmax(QKᵀ)', 200, 95)
    f.operator('add', '+', 290, 95)
    f.box('map', 'map of each head\nN × N', 395, 95, 'data')
    f.box('v', 'times values', 560, 95)
    f.chain('qk', 'soft', 'add', 'map', 'v')
    f.box('prev', 'map of the plain layer before, scaled', 290, 42, 'data')
    f.arrow('prev', 'add')
    f.frame('share layer: no queries and keys of its own', 15, 145, 705, 295)
    f.box('expand', '1×1 conv:\nheads × 3', 75, 225, 'new')
    f.box('local', 'depth-wise 3×3 conv over\nqueries × keys', 230, 225, 'new')
    f.box('project', '1×1 conv:\nheads', 380, 225, 'new')
    f.operator('res', '+', 460, 225)
    f.box('norm', 'norm over\nthe heads', 540, 225, 'new')
    f.box('v2', 'times\nvalues', 650, 225)
    f.chain('expand', 'local', 'project', 'res', 'norm', 'v2')
    f.arrow('map', 'expand', 'vhv', bend=185)
    f.arrow('map', 'res', 'vhv', bend=185)
    f.note('distributed local attention; BN and ReLU6 between the convolutions', 30, 275)
    return f


@figure
def deepvit() -> Figure:
    f = Figure('Re-attention of DeepViT: attention maps are mixed across the heads', 235)
    f.row(
        50,
        ('x', 'tokens', 'data'),
        ('qk', 'queries,\nkeys', 'stock'),
        ('soft', 'softmax', 'stock'),
        ('maps', 'map of\neach head', 'data'),
        ('mix', 'learned matrix\nheads × heads', 'new'),
        ('norm', 'batch norm\nover the heads', 'new'),
        ('times', 'times\nvalues', 'stock'),
        ('proj', 'linear\nlayer', 'stock'),
    )
    f.box('v', 'values', 300, 105)
    f.arrow('x', 'v', 'vh')
    f.arrow('v', 'times', 'hv')
    f.frame('maps of deep layers', 15, 138, 705, 222)
    f.text('plain ViT:\nnearly the same', 165, 190, size=12)
    f.text('with re-attention:\nthey differ', 475, 190, size=12)
    same = ['gbgg', 'bbgg', 'ggbg', 'gbbb']
    other = (
        ['gbgg', 'bgbg', 'ggbb', 'bggb'],
        ['bggg', 'gbbg', 'bggb', 'ggbg'],
        ['ggbb', 'gbgg', 'bbgg', 'bgbg'],
    )
    for i in range(3):
        f.grid(225 + 55 * i, 163, same, 12)
        f.grid(540 + 55 * i, 163, other[i], 12)
    return f


@figure
def elsa() -> Figure:
    f = Figure('ELSA: attention of a neighbourhood from the product of query and key', 270)
    f.box('x', 'map\nH × W × C', 60, 110, 'data')
    f.box('pre', '1×1 conv', 155, 110)
    f.box('q', 'query', 245, 45, 'data')
    f.box('k', 'key', 245, 110, 'data')
    f.box('v', 'value', 245, 230, 'data')
    for key in 'qkv':
        f.arrow('pre', key, 'h' if key == 'k' else 'hvh')
    f.arrow('x', 'pre')
    f.operator('had', '⊙', 310, 78)
    f.arrow('q', 'had', 'hv')
    f.arrow('k', 'had', 'hv')
    f.box('net', 'grouped 7×7 conv,\nGELU, 1×1 conv', 415, 78, 'new')
    f.box('soft', 'softmax over the\n7×7 neighbours', 575, 78, 'new')
    f.chain('had', 'net', 'soft')
    f.box('ghost', 'ghost head: static filters\nof each channel, m and g', 395, 165, 'new')
    f.box('filter', 'filter at each place\nm^λ · attention + γ · g', 595, 165, 'new')
    f.arrow('soft', 'filter')
    f.arrow('ghost', 'filter')
    f.box('apply', 'applied to the\nneighbourhood', 475, 230, 'new')
    f.box('out', '1×1 conv', 640, 230)
    f.arrow('filter', 'apply', 'vhv', bend=199, shift=(-30, 0))
    f.chain('v', 'apply', 'out')
    f.note('channel by channel', 268, 18)
    return f


@figure
def kvt() -> Figure:
    f = Figure('k-NN attention: each query keeps its k largest logits', 200)
    f.box('qk', 'queries, keys', 75, 100)
    f.box('logits', 'logits QKᵀ\n+ bias, mask', 195, 100)
    f.arrow('qk', 'logits')
    f.boxes['before'] = Box(310, 100, 84, 84)
    f.grid(268, 58, ['gbgbbg', 'bbggbg', 'ggbbgb', 'bgbgbg', 'gbgbgb', 'bgggbb'], 14)
    f.arrow('logits', 'before')
    f.box('top', 'k largest of\neach row; the\nothers: −∞', 425, 100, 'new')
    f.arrow('before', 'top')
    f.box('soft', 'softmax', 530, 100)
    f.box('out', 'times values', 640, 100)
    f.chain('top', 'soft', 'out')
    f.note('queries × keys,\nk = 3 in blue', 310, 166, 'middle')
    f.note('without parameters: any checkpoint loads', 425, 40, 'middle')
    return f


@figure
def scaled_relu() -> Figure:
    f = Figure('The convolutional stem with scaled ReLU in place of the patchify convolution', 255)
    f.box('image', 'image\n224', 50, 70, 'data')
    relu = 'BN, ReLU'
    f.box('c1', f'7×7 conv, stride 2\n{relu}', 165, 70, 'new')
    f.box('c2', f'3×3 conv\n{relu}', 292, 70, 'new')
    f.box('c3', f'3×3 conv\n{relu}', 387, 70, 'new')
    f.box('proj', '8×8 conv,\nstride 8', 488, 70)
    f.box('tokens', 'tokens\n14×14', 572, 70, 'data')
    f.box('vit', 'any ViT,\nDeiT, Swin', 662, 70)
    f.chain('image', 'c1', 'c2', 'c3', 'proj', 'tokens', 'vit')
    f.note('scaled ReLU: a normalisation with a learned scale, then ReLU', 292, 112, 'middle')
    f.frame('what it replaces', 15, 145, 705, 240)
    f.box('image2', 'image\n224', 60, 195, 'data')
    f.box('patch', '16×16 conv, stride 16', 292, 195)
    f.box('tokens2', 'tokens\n14×14', 488, 195, 'data')
    f.box('vit2', 'the same', 640, 195)
    f.chain('image2', 'patch', 'tokens2', 'vit2')
    return f


@figure
def irregular_patch_vit() -> Figure:
    f = Figure('Irregular patches of three sizes, uniform blocks, adaptive patch fusion', 300)
    f.box('image', 'image', 50, 80, 'data')
    f.box('stem', 'light conv\nstem, stride 16', 150, 80, 'new')
    f.box('a', 'stride 2:\n7×7 tokens', 285, 35, 'new')
    f.box('b', 'stride 4:\n4×4 tokens', 285, 85, 'new')
    f.box('c', 'global:\n1 token', 285, 135, 'new', width=90)
    f.box('cat', '66 tokens\n+ positions', 410, 85, 'data')
    f.box('blocks', 'DeiT blocks', 525, 85)
    f.box('fusion', 'adaptive\npatch fusion', 645, 85, 'new')
    f.arrow('image', 'stem')
    for key in 'abc':
        f.arrow('stem', key, 'hvh', bend=220)
        f.arrow(key, 'cat', 'hvh', bend=347)
    f.chain('cat', 'blocks', 'fusion')
    f.frame('adaptive patch fusion', 15, 170, 705, 286)
    f.box('token', 'token', 60, 236, 'data')
    f.box('mlp', 'MLP on the token', 185, 214, 'new')
    f.box('place', 'learned weight of its place', 210, 259, 'new')
    f.operator('add', '+', 345, 236)
    f.box('soft', 'softmax over\nthe tokens', 440, 236, 'new')
    f.box('sum', 'weighted sum\nof the tokens', 552, 236, 'new')
    f.box('head', 'classifier', 657, 236)
    f.arrow('token', 'mlp', 'hvh')
    f.arrow('mlp', 'add', 'hv')
    f.arrow('place', 'add', 'hv')
    f.chain('add', 'soft', 'sum', 'head')
    return f


@figure
def dsnet() -> Figure:
    f = Figure('A block of DS-Net: a local and a global stream that attend to each other', 255)
    f.box('x', 'map', 40, 115, 'data')
    f.box('pos', 'depth-wise\n3×3 conv,\n1×1 conv', 120, 115)
    f.box('local', 'half of the channels,\nfull resolution', 268, 50, 'data')
    f.box('global', 'the other half,\n1/32 of the image', 268, 180, 'data')
    f.box('conv', 'depth-wise\n3×3 conv', 415, 50, 'new')
    f.box('self', 'self-attention', 415, 180, 'new')
    f.box('cross', 'attention\nin both\ndirections', 530, 115, 'new')
    f.box('join', 'joined,\n1×1 conv', 625, 115)
    f.box('mlp', 'MLP', 690, 115)
    f.arrow('x', 'pos')
    f.arrow('pos', 'local', 'hvh')
    f.arrow('pos', 'global', 'hvh')
    f.arrow('local', 'conv')
    f.arrow('global', 'self')
    f.arrow('conv', 'cross', 'hv')
    f.arrow('self', 'cross', 'hv')
    f.chain('cross', 'join', 'mlp')
    f.note(
        'the global stream is resized down before its attention, and up again before the streams are joined;',
        30,
        226,
    )
    f.note('a residual connection around both parts', 30, 242)
    return f


@figure
def spsa() -> Figure:
    f = Figure('SPSA: attention through the cross-correlation of channels, without parameters', 250)
    f.box('x', 'tokens X\nN × d, a head', 75, 120, 'data')
    f.box('q', 'each token at\nunit length: Q', 215, 60, 'new')
    f.box('m', 'cross-correlation of\nchannels, M = QᵀX\nd × d', 385, 60, 'new')
    f.box('sums', 'sums over all tokens:\nk of Q, v of X', 385, 145, 'new')
    f.box('y', 'y = (v + Mᵀq / τ)\n/ (N + q·k / τ)\nfor each token', 595, 100, 'new')
    f.arrow('x', 'q', 'vh')
    f.arrow('q', 'm')
    f.arrow('x', 'sums', 'vh', shift=(0, 10))
    f.arrow('q', 'sums', 'vh', shift=(0, -8))
    f.arrow('m', 'y', 'hvh')
    f.arrow('sums', 'y', 'hvh')
    f.frame('what it approximates', 15, 185, 705, 238)
    f.text(
        'softmax(QQᵀ / τ) X with exp(z) ≈ 1 + z: cost linear in the number of tokens, no parameters',
        360,
        221,
        size=12,
    )
    return f


@figure
def stvit() -> Figure:
    f = Figure('STViT: later layers work on a few semantic tokens; STViT-R recovers a map', 325)
    f.box('x', 'image tokens\n14×14', 75, 60, 'data')
    f.box('base', '4 base\nlayers', 185, 60)
    f.box('pool', 'pooled to\n4×4: P', 285, 60, 'new')
    f.box('s1', 'attention:\nqueries P,\nkeys X', 390, 60, 'new')
    f.box('s2', 'attention:\nqueries S + G,\nkeys [S; X]', 510, 60, 'new')
    f.box('s', '16 semantic\ntokens', 640, 60, 'data')
    f.chain('x', 'base', 'pool', 's1', 's2', 's')
    f.arrow('base', 's1', 'vhv', bend=108)
    f.arrow('base', 's2', 'vhv', 'X', bend=108)
    f.box('later', '6 layers on\nsemantic tokens', 525, 145)
    f.box('head', 'mean,\nclassifier', 390, 145)
    f.arrow('s', 'later', 'vh')
    f.arrow('later', 'head')
    f.note('G: learned global cluster centres', 20, 145)
    f.frame('STViT-R on Swin, third stage: units of 6 blocks', 15, 185, 705, 310)
    f.box('map', 'map x', 50, 250, 'data')
    f.box('win', 'Swin\nblock', 125, 250)
    f.box('sem', 'semantic tokens\nof each window', 240, 250, 'new')
    f.box('glob', 'semantic attention,\nlocal and global', 390, 250, 'new')
    f.box('rec', 'recovery: queries x,\nkeys semantic tokens', 550, 250, 'new')
    f.box('out', 'map x', 670, 250, 'data')
    f.chain('map', 'win', 'sem', 'glob', 'rec', 'out')
    f.arrow('win', 'rec', 'vhv', bend=292)
    return f


@figure
def token_labeling() -> Figure:
    f = Figure(
        'Token labeling: every patch token has a soft target out of a label map made once', 315
    )
    f.frame('once, off line', 15, 12, 705, 92)
    f.box('image', 'training image', 115, 58, 'data')
    f.box('annotator', 'strong classifier,\napplied at every place', 290, 58)
    f.box('map', 'label map: the 5 best classes\nat each place', 530, 58, 'data')
    f.chain('image', 'annotator', 'map')
    f.frame('in training', 15, 105, 705, 302)
    f.box('flip', 'the same flips,\nrotations, ...', 125, 165, 'new')
    f.box('roi', 'RoIAlign of the crop,\nsoftmax', 280, 165, 'new')
    f.box('target', 'a target for the image\nand one for each token', 465, 165, 'data')
    f.arrow('map', 'flip', 'vhv', bend=130)
    f.chain('flip', 'roi', 'target')
    f.box('aug', 'flip, RandAugment,\nthen crop', 125, 255)
    f.box('vit', 'ViT', 255, 255)
    f.box('cls', 'class token', 385, 232, 'data', width=105)
    f.box('tok', 'patch tokens', 385, 272, 'data', width=105)
    f.box('lcls', 'cross entropy', 610, 218, 'loss')
    f.box('ltok', 'cross entropy\nof each token', 610, 268, 'loss')
    f.arrow('image', 'aug', 'hvh', bend=20)
    f.arrow('aug', 'vit')
    f.arrow('vit', 'cls', 'hvh')
    f.arrow('vit', 'tok', 'hvh')
    f.arrow('cls', 'lcls', 'hvh')
    f.arrow('tok', 'ltok')
    f.arrow('target', 'lcls', 'hv', shift=(-7, 0))
    f.arrow('target', 'ltok', 'hvh', bend=692, shift=(7, 0))
    f.note('MixToken: CutMix on the tokens', 30, 289)
    return f


# Distillation


@figure
def ld() -> Figure:
    f = Figure(
        'LD: a student learns the distributions of box edges from its teacher, in two regions', 300
    )
    f.box('image', 'image', 42, 150, 'data')
    f.box('teacher', 'teacher (frozen):\ndense detector', 140, 70)
    f.box('student', 'student:\ndense detector', 140, 230)
    f.arrow('image', 'teacher', 'vh')
    f.arrow('image', 'student', 'vh')
    for key, y, heights, color in (
        ('t', 70, ([3, 6, 14, 34, 26, 10, 4, 2], [2, 5, 10, 18, 32, 20, 8, 3]), '#8b919c'),
        ('s', 230, ([6, 12, 18, 20, 17, 12, 8, 5], [4, 9, 14, 18, 20, 17, 10, 6]), '#f2b56b'),
    ):
        f.boxes[key] = Box(312, y, 184, 64)
        f.bars(232, y + 22, heights[0], color)
        f.bars(322, y + 22, heights[1], color)
    f.note('edge distributions, class logits', 312, 22, 'middle')
    f.arrow('teacher', 't')
    f.arrow('student', 's')
    f.box('main', 'main region:\nthe student’s positives', 512, 85, 'new')
    f.box('vlr', 'valuable localization\nregion: around them', 512, 215, 'new')
    f.box('edges', 'KL of the\nedges', 662, 55, 'loss')
    f.box('classes', 'KL of the\nclasses', 662, 115, 'loss')
    f.box('edges2', 'KL of the\nedges', 662, 215, 'loss')
    f.arrow('t', 'main', 'h', broken=True)
    f.arrow('t', 'vlr', 'hvh', bend=412, shift=(-12, -10), broken=True)
    f.arrow('s', 'main', 'hvh', bend=424, shift=(12, 10))
    f.arrow('s', 'vlr', 'h')
    f.arrow('main', 'edges', 'hvh')
    f.arrow('main', 'classes', 'hvh')
    f.arrow('vlr', 'edges2')
    f.note(
        'teacher and student are compared within each region; nothing is added at inference',
        360,
        284,
        'middle',
    )
    return f


@figure
def dsig() -> Figure:
    f = Figure('Dsig: instance graphs of student and teacher are compared', 290)
    f.box('image', 'image', 42, 145, 'data')
    f.box('teacher', 'teacher\n(frozen)', 120, 55)
    f.box('student', 'student', 120, 235)
    f.arrow('image', 'teacher', 'vh')
    f.arrow('image', 'student', 'vh')
    f.box('pt', 'pyramid', 215, 55, 'data')
    f.box('ps', 'pyramid', 215, 235, 'data')
    f.box('rois', 'RoIs that the\nstudent samples', 190, 145, 'new')
    f.box('nt', 'RoIAlign:\nnodes', 340, 55, 'new', 110)
    f.box('ns', 'RoIAlign:\nnodes', 340, 235, 'new', 110)
    f.box('et', 'cosine of pairs:\nedges', 500, 55, 'new')
    f.box('es', 'cosine of pairs:\nedges', 500, 235, 'new')
    f.box('mine', 'of the background what\nthe teacher finds hard', 510, 145, 'new')
    f.box('ln', 'node loss', 365, 145, 'loss')
    f.box('le', 'edge loss', 660, 145, 'loss')
    f.chain('teacher', 'pt', 'nt', 'et')
    f.chain('student', 'ps', 'ns', 'es')
    f.arrow('rois', 'nt', 'hv', shift=(-8, -42))
    f.arrow('rois', 'ns', 'hv', shift=(8, -42))
    f.arrow('nt', 'ln', broken=True)
    f.arrow('ns', 'ln')
    f.arrow('mine', 'et')
    f.arrow('mine', 'es')
    f.arrow('et', 'le', 'hv', broken=True)
    f.arrow('es', 'le', 'hv')
    f.note(
        'node loss: foreground and background apart; edges: foreground and hard background',
        360,
        278,
        'middle',
    )
    return f


@figure
def sea() -> Figure:
    f = Figure(
        'SEA: category anchors and the topological distance of pixels to them are aligned', 300
    )
    f.box('image', 'image', 45, 150, 'data')
    f.box('teacher', 'teacher\n(frozen)', 130, 60)
    f.box('student', 'student', 130, 240)
    f.arrow('image', 'teacher', 'vh')
    f.arrow('image', 'student', 'vh')
    f.box('pt', 'pixels of\na level', 225, 60, 'data')
    f.box('ps', 'pixels of\na level', 225, 240, 'data')
    f.box('labels', 'category of each pixel,\nfrom boxes or masks', 240, 150, 'new')
    f.box('at', 'category anchors:\nmean of each category', 395, 60, 'new')
    f.box('as', 'category anchors:\nmean of each category', 395, 240, 'new')
    f.box('dt', 'topology:\n1 − cos(pixel, anchor)', 592, 60, 'new')
    f.box('ds', 'topology:\n1 − cos(pixel, anchor)', 592, 240, 'new')
    f.box('la', 'anchor loss', 395, 150, 'loss')
    f.box('lt', 'topology loss,\neach category counts alike', 592, 150, 'loss')
    f.chain('teacher', 'pt', 'at', 'dt')
    f.chain('student', 'ps', 'as', 'ds')
    f.arrow('labels', 'at', 'vhv', bend=105, shift=(60, -40))
    f.arrow('labels', 'as', 'vhv', bend=195, shift=(60, -40))
    f.arrow('at', 'la', broken=True)
    f.arrow('as', 'la')
    f.arrow('dt', 'lt', broken=True)
    f.arrow('ds', 'lt')
    return f


@figure
def reviewkd() -> Figure:
    f = Figure(
        'ReviewKD: each level of the student, fused with the deeper ones, matches the teacher', 290
    )
    for i, x in enumerate((110, 270, 430, 590)):
        name = ('shallow', 'level 2', 'level 3', 'deep')[i]
        f.box(f's{i}', name, x, 50, 'data', width=90)
        f.box(f'f{i}', 'fusion', x, 120, 'new', width=90)
        f.box(f'l{i}', 'context loss', x, 185, 'loss', width=100)
        f.box(f't{i}', name, x, 250, 'data', width=90)
        f.arrow(f's{i}', f'f{i}')
        f.arrow(f'f{i}', f'l{i}')
        f.arrow(f't{i}', f'l{i}', broken=True)
    for i in range(3):
        f.arrow(f's{i}', f's{i + 1}')
        f.arrow(f't{i}', f't{i + 1}')
        f.arrow(f'f{i + 1}', f'f{i}', text='review')
    f.note('student', 12, 50)
    f.note('teacher,\nfrozen', 12, 250)
    f.note(
        'context loss: squared difference of the features as they are and pooled to 4×4, 2×2 and 1×1',
        110,
        280,
    )
    f.note('1×1 conv;\n3×3 conv\nto the loss', 642, 120)
    return f


@figure
def hgkd() -> Figure:
    f = Figure('H-GKD: from a masked image a sparse CNN predicts the tokens of a Transformer', 260)
    f.boxes['masked'] = Box(62, 75, 80, 80)
    f.grid(22, 35, ['gwgg', 'ggwg', 'wggg', 'ggwg'], 20)
    f.note('masked', 62, 128, 'middle')
    f.box('enc', 'sparse CNN:\nvisible cells\nalone', 170, 75, 'new')
    f.box('fill', 'mask tokens in\nthe empty cells', 295, 75, 'new')
    f.box('dec', 'light UNet\ndecoder', 415, 75, 'new')
    f.box('head', 'token\nhead', 505, 75, 'new')
    f.box('pred', 'prediction', 595, 75, 'data')
    f.chain('masked', 'enc', 'fill', 'dec', 'head', 'pred')
    f.arrow('enc', 'dec', 'vhv', 'skips', bend=125)
    f.boxes['whole'] = Box(62, 195, 80, 80)
    f.grid(22, 155, ['bbbb', 'bbbb', 'bbbb', 'bbbb'], 20)
    f.note('whole', 62, 246, 'middle')
    f.box('vit', 'Transformer,\npre-trained, frozen', 215, 195)
    f.box('norm', 'each token\nnormalised', 375, 195)
    f.box('target', 'target', 500, 195, 'data')
    f.box('loss', 'smooth L1: masked\nand visible tokens', 620, 195, 'loss')
    f.chain('whole', 'vit', 'norm', 'target')
    f.arrow('target', 'loss', broken=True)
    f.arrow('pred', 'loss')
    f.note('kept: a stock ResNet or ConvNeXt', 170, 25, 'middle')
    return f


# Detection


@figure
def o2detr() -> Figure:
    f = Figure('O2DETR: an encoder without attention, and queries that predict rotated boxes', 290)
    f.row(
        60,
        ('image', 'image', 'data'),
        ('backbone', 'ResNet,\n4 levels', 'stock'),
        ('enc', '6 encoder layers:\ndepth-wise separable\nconv, FFN', 'new'),
        ('dec', '6 decoder layers,\n500 queries', 'stock'),
        ('head', 'class;\ncx, cy, w, h, angle', 'new'),
        ('match', 'set matching', 'stock'),
    )
    f.box('loss', 'focal, L1 with a periodic\nangle, rotated IoU', 610, 140, 'loss')
    f.arrow('match', 'loss')
    f.rectangle(440, 150, 90, 34, -28, ORANGE)
    f.rectangle(345, 165, 44, 20, 60, ORANGE)
    f.note('(cx, cy, w, h, angle)', 330, 128, 'middle')
    f.note('no rotated anchors, no NMS', 30, 140)
    f.frame('F-O2DETR: the boxes once more', 15, 192, 705, 275)
    f.box('boxes', 'boxes of the\nlast layer', 90, 245, 'data')
    f.box('roi', 'RoIAlignRotated of the\nencoder’s levels', 265, 245, 'new')
    f.box('fc', 'two linear layers,\nwith the query', 440, 245, 'new')
    f.box('ref', 'class, offsets along\nthe box’s axes', 610, 245, 'new')
    f.chain('boxes', 'roi', 'fc', 'ref')
    return f


@figure
def metr() -> Figure:
    f = Figure('METR: each query looks for one named category of the image’s own label space', 320)
    f.box('a', 'images of set A', 80, 40, 'data')
    f.box('b', 'images of set B', 80, 85, 'data')
    f.box('enc', 'backbone,\nencoder', 205, 62)
    f.box('names', 'category names of\nthe image’s own set', 95, 170, 'data')
    f.box('emb', 'language\nembeddings', 235, 170)
    f.box('cem', 'category extraction:\nwhich may be there?', 395, 120, 'new')
    f.box('pick', 'n categories', 540, 120, 'data')
    f.box('queries', 'queries of one\ncategory each', 540, 200, 'new')
    f.box('dec', 'decoder', 395, 200)
    f.box('head', 'yes or no; box', 395, 265, 'new')
    f.box('match', 'a matching within\neach category', 540, 265, 'new')
    f.box('loss', 'focal, L1,\nGIoU', 660, 265, 'loss')
    f.arrow('a', 'enc', 'hvh')
    f.arrow('b', 'enc', 'hvh')
    f.arrow('names', 'emb')
    f.arrow('enc', 'cem', 'hv')
    f.arrow('emb', 'cem', 'hvh', bend=300)
    f.arrow('cem', 'pick')
    f.chain('pick', 'queries', 'dec', 'head', 'match', 'loss')
    f.box('stock', 'exported to a\nstock DETR', 235, 265)
    f.arrow('dec', 'stock', 'hvh', bend=310)
    f.note('label spaces are\nnever merged', 30, 250)
    return f


# Segmentation


@figure
def decouplenet() -> Figure:
    f = Figure('DecoupleNet: shallow layers of each domain, one deep network', 370)
    f.frame('phase 1', 15, 15, 705, 245)
    f.box('src', 'source,\nlabelled', 60, 75, 'data')
    f.box('tgt', 'target,\nno labels', 60, 185, 'data')
    f.box('b1', 'shallow layers\nof the source', 180, 75, 'new')
    f.box('b2', 'shallow layers\nof the target', 180, 185)
    f.box('deep', 'deep layers,\nhead', 330, 130)
    f.box('d1', 'discriminator\nof features', 330, 45, 'new', height=36)
    f.arrow('src', 'b1')
    f.arrow('tgt', 'b2')
    f.arrow('b1', 'deep', 'hvh', bend=258, shift=(8, -8))
    f.arrow('b2', 'deep', 'hvh', bend=258, shift=(0, 8))
    f.arrow('b1', 'd1', 'hvh', bend=258, shift=(-10, 0))
    f.box('seg', 'cross entropy', 520, 85, 'loss')
    f.box('d2', 'discriminator\nof outputs', 520, 140, 'new')
    f.box('st', 'auxiliary classifier:\npseudo labels', 500, 205, 'new')
    f.arrow('deep', 'seg', 'hvh', 'source', bend=405, shift=(-12, 0))
    f.arrow('deep', 'd2', 'h')
    f.arrow('deep', 'st', 'hvh', 'target', bend=405, shift=(12, 0))
    f.box('adv', 'source features\nlike the target’s', 625, 45, 'loss')
    f.arrow('d1', 'adv')
    f.box('adv2', 'target outputs\nlike the source’s', 640, 140, 'loss', width=112)
    f.arrow('d2', 'adv2')
    f.box('lst', 'self-\ndiscrimination', 645, 205, 'loss')
    f.arrow('st', 'lst')
    f.frame(
        'phase 2: an ordinary EncoderDecoder; cross entropy on the source as before',
        15,
        260,
        705,
        355,
    )
    f.box('crop', 'augmented\ntarget image', 80, 315, 'data')
    f.box('net', 'shallow layers of the\ntarget, deep layers, head', 240, 315)
    f.box('ce', 'cross\nentropy', 385, 315, 'loss')
    f.box(
        'soft',
        'mean of what phase 1 stored and\nof the present prediction, thresholds',
        565,
        315,
        'new',
    )
    f.chain('crop', 'net', 'ce')
    f.arrow('soft', 'ce', broken=True)
    return f


@figure
def tagclip() -> Figure:
    f = Figure('TagCLIP: a trusty token says where novel classes are', 310)
    f.box('image', 'image', 45, 70, 'data')
    f.box('clip', 'CLIP image encoder,\nwith trained prompts', 165, 70, 'new')
    f.box('patches', 'patches', 310, 45, 'data', width=80)
    f.box('emb', 'embedding', 310, 95, 'data', width=90)
    f.box('names', 'class names', 65, 190, 'data')
    f.box('text', 'CLIP text encoder,\nfrozen', 200, 190)
    f.box('trusty', 'trusty token,\nlearned', 200, 250, 'new')
    f.box(
        'query', 'queries: text and\ntrusty token, each joined\nwith the embedding', 395, 190, 'new'
    )
    f.box('dec', '3 decoder layers:\nmasks are attention\nlogits', 525, 70, 'new')
    f.box('masks', 'mask of\neach name', 655, 50, 'data')
    f.box('map', 'trusty map:\nnovel?', 655, 115, 'data')
    f.box('weigh', 'seen × (1 − trusty)\nunseen × trusty', 620, 200, 'new')
    f.box('seg', 'labels', 620, 265, 'data')
    f.arrow('image', 'clip')
    f.arrow('clip', 'patches', 'hvh')
    f.arrow('clip', 'emb', 'hvh')
    f.arrow('patches', 'dec', 'hvh', shift=(0, -10))
    f.arrow('emb', 'query', 'v')
    f.arrow('names', 'text')
    f.arrow('text', 'query')
    f.arrow('trusty', 'query', 'hv')
    f.arrow('query', 'dec', 'hv')
    f.arrow('dec', 'masks', 'hvh')
    f.arrow('dec', 'map', 'hvh')
    f.arrow('map', 'weigh')
    f.arrow('masks', 'weigh', 'hvh', bend=706, shift=(0, 0))
    f.arrow('weigh', 'seg')
    f.note('only prompts and head are trained', 20, 290)
    return f


def main(argv: Optional[Sequence[str]] = None) -> int:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument('papers', nargs='*', metavar='PAPER', help='short names (default: all)')
    args = cli.parse_args(argv)
    unknown = [name for name in args.papers if name not in FIGURES]
    if unknown:
        print(f'error: there is no figure of {", ".join(unknown)}', file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    for name in args.papers or FIGURES:
        (IMAGES / f'{name}.svg').write_text(FIGURES[name]().svg(), 'utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
