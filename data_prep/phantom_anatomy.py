"""The anatomy of a synthetic chest, as a map of how much matter each ray of the X-ray beam crosses.

Lengths are centimetres. x runs to the right of the image, which is the patient's left; y runs down and is 0 at the
lung apices. Attenuation is given as thickness of water: a ray through 20 cm of muscle counts 20, the same ray through
a lung counts a few. Typical adult sizes from anatomy textbooks, varied by a few per cent to tens of per cent; they are
the project's own choice and no patient's measurements.
"""

import dataclasses
import math

import cv2
import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator

_SUBPIXEL_BITS = 4
_LUNG_AIR = 0.76  # share of an inflated lung's depth that is air


class Canvas:
    """A pixel grid laid over the patient: shapes in centimetres become images of that grid.

    Args:
        size: pixels a side.
        field: centimetres a side.
        centre: (x, y) in centimetres of the middle of the image.
        angle: rotation of the patient in the image, radians.
    """

    def __init__(self, size, field, centre, angle):
        self.size = size
        self.scale = size / field
        self._centre = np.asarray(centre, dtype=np.float64)
        self._rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        pixels = (np.arange(size) + 0.5 - size / 2) / self.scale
        across, down = np.meshgrid(pixels, pixels)
        (a, b), (c, d) = self._rotation.T
        self.x = (a * across + b * down + self._centre[0]).astype(np.float32)
        self.y = (c * across + d * down + self._centre[1]).astype(np.float32)

    def pixels(self, points):
        """Positions [N, 2] in centimetres as fixed-point pixel positions, the form that OpenCV draws from."""
        position = (np.asarray(points) - self._centre) @ self._rotation.T * self.scale + self.size / 2 - 0.5
        return np.rint(position * (1 << _SUBPIXEL_BITS)).astype(np.int32)

    def blank(self):
        """An empty 8-bit layer to draw on."""
        return np.zeros((self.size, self.size), np.uint8)

    def fill(self, layer, outline, value=1.0):
        """Fills a closed outline [N, 2] on `layer`; value 1 is full scale."""
        cv2.fillPoly(layer, [self.pixels(outline)], round(255 * value), cv2.LINE_AA, _SUBPIXEL_BITS)

    def area(self, *outlines):
        """Float32 [H, W]: 1 inside any of the outlines, 0 outside, in between on the borders."""
        layer = self.blank()
        for outline in outlines:
            self.fill(layer, outline)
        return as_float(layer)

    def blur(self, image, sigma):
        """Gaussian blur; `sigma` in centimetres. Wide ones are taken on a smaller grid, which looks the same."""
        sigma = sigma * self.scale
        if sigma < 0.3:
            return image
        shrink = 2 ** max(0, int(math.log2(sigma / 3)))
        if shrink == 1:
            return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        small = cv2.resize(image, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / shrink, borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(small, (self.size, self.size), interpolation=cv2.INTER_CUBIC)

    def rounded(self, area, radius):
        """The profile of a body with round sides: 0 on the border of `area`, 1 from `radius` (cm) inward."""
        distance = cv2.distanceTransform((area > 0.5).astype(np.uint8), cv2.DIST_L2, 5) / self.scale
        return np.sqrt(np.clip(1 - np.square(1 - np.minimum(distance / radius, 1)), 0, 1))


@dataclasses.dataclass(frozen=True)
class Chest:
    """What the beam meets, all float32 [H, W] on the canvas.

    Attributes:
        water: thickness of water with the attenuation of everything on the ray, cm.
        air: thickness of the air in the lungs, cm.
        lungs: 1 where a reader sees lung, 0 elsewhere, in between on the borders.
        body: 1 where the ray meets the patient.
    """

    water: np.ndarray
    air: np.ndarray
    lungs: np.ndarray
    body: np.ndarray


def as_float(layer):
    """An 8-bit layer as float32 in [0, 1]."""
    return layer.astype(np.float32) / 255


def curve(points, count=40):
    """A smooth line [count, 2] through the points."""
    points = np.asarray(points, dtype=np.float64)
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    return CubicSpline(length, points, bc_type="natural")(np.linspace(0, length[-1], count))


def band(line, width):
    """The outline of a strip of the given width (a number, or one a point) along a line [N, 2]."""
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-9)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * (np.broadcast_to(width, len(line)) / 2)[:, None]
    return np.concatenate([line + across, (line - across)[::-1]])


def draw_parameters(rng):
    """Draws the sizes and habits of one patient: a JSON-able dictionary of numbers (cm, radians, shares)."""

    def between(low, high):
        return round(float(rng.uniform(low, high)), 4)

    def chance(share):
        return bool(rng.random() < share)

    def normal(mean, deviation, limit=2.0):
        return round(float(mean + deviation * np.clip(rng.normal(), -limit, limit)), 4)

    female = chance(0.5)
    return {
        "half_width": normal(13.0 if female else 14.0, 0.6),
        "lung_height": normal(24.5 if female else 26.0, 1.3),
        "wall": between(2.0, 4.2),
        "thorax_depth": normal(18.0, 1.6),
        "shoulder_drop": between(-0.6, 1.6),
        "neck": between(4.8, 6.4),
        "arm_angle": between(0.15, 0.75),
        "arm_distance": between(0.0, 2.0),
        "right_dome": normal(0.0, 0.6),
        "left_dome": normal(0.9, 0.4),
        "dome_shape": between(0.75, 1.25),
        "heart_width": normal(1.0, 0.085),
        "heart_tilt": normal(0.0, 0.07),
        "aorta": between(1.3, 2.0),
        "mediastinum": normal(1.0, 0.1),
        "trachea_shift": normal(-0.3, 0.2),
        "spine_bend": normal(0.0, 0.35),
        "rib_spacing": normal(2.42, 0.07),
        "rib_width": between(1.1, 1.45),
        "rib_slope": normal(1.0, 0.1),
        "rib_density": between(0.75, 1.25),
        "bone_density": between(0.8, 1.2),
        "clavicle_tilt": normal(0.0, 0.6),
        "scapula_shift": between(0.3, 3.2),
        "vessels": between(0.75, 1.2),
        "hilum": between(0.8, 1.2),
        "parenchyma": between(0.6, 1.2),
        "breast": between(1.2, 3.2) if female and chance(0.8) else 0.0,
        "breast_height": between(0.56, 0.76),
        "gastric_bubble": between(0.8, 2.2) if chance(0.6) else 0.0,
        "field": between(31.0, 36.0),
        "shift_x": normal(0.0, 0.5),
        "shift_y": normal(0.0, 0.8),
        "rotation": normal(0.0, 0.022),
    }


def patient_canvas(size, p):
    """The canvas of a radiograph of the patient with the parameters `p`."""
    centre = (p["shift_x"], p["lung_height"] / 2 - 0.6 + p["shift_y"])
    return Canvas(size, p["field"], centre, p["rotation"])


def build(canvas, p, rng):
    """Builds the chest with the parameters `p` on `canvas`; `rng` gives the vessels and the fine texture.

    Returns:
        A `Chest`.
    """
    lateral = lateral_wall(p)
    half_width = lateral(np.clip(canvas.y, -2.0, p["lung_height"] + 6)).astype(np.float32)
    periphery = np.abs(canvas.x) / np.maximum(half_width, 1.0)

    body, tissue = _body(canvas, p, lateral)
    left, right = (_lung_outline(p, lateral, side) for side in (1, -1))
    inflated = canvas.blur(canvas.area(left, right), 0.06)
    heart, vessels_of_mediastinum = _mediastinum(canvas, p)

    depth = p["thorax_depth"] * np.interp(canvas.y, [-1, 3, 9, 16, 26], [0.35, 0.62, 0.9, 1.0, 1.0]).astype(np.float32)
    beside_spine = np.clip((np.abs(canvas.x) - 0.6) / 4.0, 0, 1) ** 0.75
    chord = depth * np.sqrt(np.clip(1 - periphery**2.4, 0, 1)) * beside_spine
    recess = canvas.blur(canvas.area(*(_recess_outline(p, lateral, side) for side in (1, -1))), 1.0)
    recess *= np.clip((periphery - 0.1) / 0.4, 0, 1)
    solid = p["thorax_depth"] * (0.85 * heart + vessels_of_mediastinum)
    lung = np.maximum(np.maximum(chord * inflated - solid, 0), 2.2 * recess * (1 - inflated))

    aerated = lung / np.maximum(depth, 1.0)
    branches = _vessels(canvas, p, rng) * np.clip(aerated * 4, 0, 1)
    grain = p["parenchyma"] * texture(canvas, rng, (24, 48, 96, 192), 0.75) * np.clip(aerated * 2, 0, 1)
    water = tissue - _LUNG_AIR * lung + 0.85 * branches + 0.24 * grain
    water += 0.35 * texture(canvas, rng, (4, 8, 16, 32), 0.7) * body
    water -= _airways(canvas, p) + _gas(canvas, p, body)
    water += _bones(canvas, p, lateral, body)

    seen = inflated * (1 - np.clip(2.2 * heart, 0, 1)) * (1 - np.clip(2.2 * vessels_of_mediastinum, 0, 1))
    return Chest(np.maximum(water, 0), _LUNG_AIR * lung, seen, body)


def texture(canvas, rng, scales, persistence):
    """Smooth random texture of mean 0 and deviation about 1.

    The lattices do not depend on the canvas, so a patient looks the same at any image size; each is turned by an angle
    of its own, because lattices in line with the pixels show as a weave.

    Args:
        canvas: a `Canvas`.
        rng: a `numpy.random.Generator`.
        scales: lattice cells across the image, one lattice each.
        persistence: weight of each lattice relative to the one before.

    Returns:
        Float32 [H, W].
    """
    total, power = np.zeros_like(canvas.x), 0.0
    for octave, cells in enumerate(scales):
        lattice = rng.standard_normal((int(1.5 * cells), int(1.5 * cells)), dtype=np.float32)
        angle, step = rng.uniform(0, math.pi / 2), cells / canvas.size
        if cells > canvas.size:  # finer than the pixels; drawn all the same, so that what follows is too
            continue
        turn = step * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        shift = 0.75 * cells - turn @ np.full((2, 1), canvas.size / 2)
        matrix = np.hstack([turn, shift])  # from a pixel to its place in the lattice, middle to middle
        weight = persistence**octave
        total += weight * cv2.warpAffine(
            lattice, matrix, total.shape, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
        )
        power += weight**2
    return total / math.sqrt(power)


def lateral_wall(p):
    """Half-width of the thoracic cavity of the patient with the parameters `p`, as a function of y (cm)."""
    t = np.array([-0.1, 0.0, 0.04, 0.15, 0.31, 0.5, 0.7, 0.88, 1.0, 1.3])
    share = np.array([0.40, 0.42, 0.56, 0.74, 0.875, 0.945, 0.985, 1.0, 0.985, 0.94])
    return PchipInterpolator(t * p["lung_height"], share * p["half_width"], extrapolate=True)


def _diaphragm(p, side):
    """The dome from the costophrenic angle to the midline: [N, 2]."""
    w, h = p["half_width"], p["lung_height"]
    raised = (p["right_dome"] if side < 0 else p["left_dome"]) + 0.825 * h
    sag = 2.9 * p["dome_shape"]
    share = np.array([0.985, 0.93, 0.8, 0.62, 0.45, 0.28, 0.12])
    y = np.array([h, raised + sag, raised + 0.35 * sag, raised, raised - 0.05, raised + 0.3, raised + 1.1])
    y[1] = min(y[1], h - 0.5)
    return curve(np.stack([side * share * w, y], axis=1))


def _lung_outline(p, lateral, side):
    h = p["lung_height"]
    y = np.linspace(0.025, 0.985, 30) * h
    wall = np.stack([side * lateral(y), y], axis=1)
    apex = curve([(side * 2.6, 0.11 * h), (side * 3.0, 0.045 * h), (side * 4.7, 0.0), (side * lateral(y[0]), y[0])], 16)
    dome = _diaphragm(p, side)
    medial = curve([dome[-1], (side * 1.3, 0.7 * h), (side * 1.3, 0.4 * h), (side * 1.9, 0.22 * h), apex[0]], 20)
    return np.concatenate([apex[:-1], wall, dome, medial[1:-1]])


def _recess_outline(p, lateral, side):
    """The lung that reaches down behind the diaphragm."""
    h, w = p["lung_height"], p["half_width"]
    lower = curve([(side * 0.97 * w, h), (side * 0.6 * w, 1.09 * h), (side * 0.15 * w, 1.0 * h)], 20)
    upper = [(side * 0.15 * w, 0.7 * h), (side * float(lateral(0.7 * h)) * 0.98, 0.7 * h)]
    return np.concatenate([lower, upper])


def _body(canvas, p, lateral):
    """Outline (float mask) and solid thickness, lungs not yet taken out."""
    h, wall = p["lung_height"], p["wall"]
    shoulder = 1.6 + p["shoulder_drop"]
    half = []
    for side in (1, -1):
        top = [
            (side * p["neck"], -9), (side * (p["neck"] + 0.3), -4.8), (side * 9.5, -2.6 + 0.5 * shoulder),
            (side * 14.5, -1.9 + shoulder), (side * 18.5, -0.9 + shoulder), (side * 21.5, 2.2 + shoulder),
        ]  # fmt: skip
        top = curve(top)
        y = np.array([0.42, 0.55, 0.7, 0.85, 1.0, 1.2, 1.5]) * h
        bulge = np.array([1.9, 0.9, 0.25, 0.0, 0.1, 0.3, 0.4])
        flank = np.stack([side * (lateral(np.minimum(y, 1.2 * h)) + wall + bulge), y], axis=1)
        axilla = (side * (float(lateral(0.3 * h)) + wall + 4.6), 0.3 * h)
        half.append(np.concatenate([top, [axilla], curve(flank)]))
    trunk = canvas.area(np.concatenate([half[0], half[1][::-1]]))
    row = np.interp(canvas.y, [-6, -2, 3, 10, 18, 30], [10.5, 11.0, 14.0, 19.5, 23.0, 24.0]).astype(np.float32)
    row = row * (p["thorax_depth"] + 1.1 * wall) / 21.3
    outward = np.clip((np.abs(canvas.x) - 9.0) / 9.0, 0, 1) * np.clip((12.0 - canvas.y) / 8.0, 0, 1)
    tissue = row * (1 - 0.4 * outward) * canvas.rounded(trunk, 11.0)
    arms = np.zeros_like(tissue)
    for side in (1, -1):
        arm = _arm(p, side, shoulder)
        area = canvas.area(band(arm, np.linspace(10.0, 8.4, len(arm))))
        arms = np.maximum(arms, 9.0 * canvas.rounded(area, 4.6))
        trunk = np.maximum(trunk, area)
    return trunk, canvas.blur(np.maximum(tissue, arms), 0.12) + _breasts(canvas, p)


def _arm(p, side, shoulder):
    angle = p["arm_angle"]
    start = np.array([side * (16.8 + p["arm_distance"]), shoulder + 3.2])
    return start + np.linspace(0, 34, 20)[:, None] * np.array([side * math.sin(angle), math.cos(angle)])


def _breasts(canvas, p):
    if not p["breast"]:
        return np.zeros_like(canvas.x)
    total = np.zeros_like(canvas.x)
    for side in (1, -1):
        x, y = side * 0.56 * p["half_width"], p["breast_height"] * p["lung_height"]
        radius = 0.5 * p["half_width"] * (0.85 + 0.1 * p["breast"])
        down = canvas.y - y
        reach = np.where(down > 0, 0.62 * radius, 1.35 * radius)  # the upper border fades, the lower one is a fold
        left = np.clip(1 - np.square((canvas.x - x) / (1.08 * radius)) - np.square(down / reach), 0, 1)
        total += p["breast"] * np.where(down > 0, left**0.5, left)
    return canvas.blur(total, 0.12)


def _mediastinum(canvas, p):
    """Heart and great vessels as shares of the thorax's depth that they fill: two profiles in [0, 1]."""
    h, wide, m = p["lung_height"], p["heart_width"], p["mediastinum"]
    top = 0.43 * h
    heart = np.array([
        (-2.4, -1.2), (-2.9, 1.0), (-3.8, 3.6), (-4.3, 6.3), (-4.1, 8.8), (-3.3, 11.3), (0.8, 13.0), (5.0, 12.9),
        (8.0, 11.6), (9.1, 9.6), (8.8, 7.5), (7.7, 5.2), (6.1, 3.3), (4.7, 1.8), (3.8, 0.4), (3.4, -0.9), (2.7, -2.4),
        (0.8, -3.4), (-1.4, -3.0), (-2.4, -1.2),
    ])  # fmt: skip
    turn = p["heart_tilt"]
    heart = heart @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    heart = curve(heart * [wide, (0.55 * wide + 0.45) * h / 26] + [0, top], 90)
    arch = np.array([1.7 * m, 0.275 * h])
    cava = [(-1.9, -4), (-2.4 * m, 0.1 * h), (-2.6 * m, 0.25 * h), (-2.7 * m, 0.4 * h), (-2.4, 0.55 * h)]
    left = [(1.8, 0.55 * h), (2.3 * m, 0.37 * h), (2.1 * m, 0.2 * h), (2.0 * m, 0.1 * h), (1.9, -4)]
    column = np.concatenate([curve(cava), curve(left)])
    angle = np.linspace(0, 2 * np.pi, 40)
    knob = arch + p["aorta"] * np.stack([np.cos(angle), 1.15 * np.sin(angle)], axis=1)
    descending = curve(
        [(arch[0] + p["aorta"] - 0.3, arch[1] + 0.5), (2.4 * m, 0.5 * h), (2.1, 0.8 * h), (1.6, 1.05 * h)], 30
    )
    aorta = np.concatenate([descending, [(0, 1.05 * h), (0, arch[1])]])
    front = np.maximum(0.9 * canvas.rounded(canvas.area(heart), 4.0), 0.55 * canvas.rounded(canvas.area(column), 2.2))
    back = 0.45 * canvas.rounded(canvas.area(knob, column), 1.3), 0.16 * canvas.rounded(canvas.area(aorta), 1.2)
    return canvas.blur(front, 0.07), canvas.blur(np.maximum(*back), 0.07)


def _vessels(canvas, p, rng):
    """Pulmonary vessels: trees from each hilum, halving in calibre towards the pleura. Thickness in cm."""
    h = p["lung_height"]
    segments = []
    for side in (1, -1):
        hilum = np.array([side * 3.9, (0.40 if side > 0 else 0.43) * h])
        aim = np.radians([-80, -52, -20, 12, 38, 60, 80]) + rng.normal(0, 0.12, 7)
        start = hilum + np.stack([side * rng.uniform(-0.4, 0.4, 7), np.sin(aim) * 1.4], axis=1)
        width = p["vessels"] * np.array([0.62, 0.6, 0.5, 0.5, 0.66, 0.85, 0.7])
        length = np.array([2.3, 2.2, 1.9, 1.9, 2.4, 2.7, 2.4]) * h / 26
        for _ in range(7):
            bend = rng.normal(0, 0.22, (3, len(aim)))
            for turn in bend:  # a branch is three straight pieces with bends
                end = start + (length / 3)[:, None] * np.stack([side * np.cos(aim), np.sin(aim)], axis=1)
                segments.append(np.concatenate([start, end, width[:, None]], axis=1))
                start, aim, width = end, aim + turn, width * 0.96
            fork = rng.uniform(0.3, 0.95, len(aim))
            share = rng.uniform(0.62, 0.9, len(aim))  # of the calibre, to the stronger of two branches
            toward = rng.choice([-1, 1], len(aim))
            start = np.concatenate([start, start])
            aim = np.concatenate([aim + toward * fork * (1 - share), aim - toward * fork * share])
            width = np.concatenate([width * share, width * np.sqrt(1 - share**2) * 1.05])
            length = np.tile(length, 2) * rng.uniform(0.6, 1.0, len(aim))
            wide = width > 0.07
            start, aim, width, length = start[wide], aim[wide], width[wide], length[wide]
    segments = np.concatenate(segments)
    segments = segments[np.argsort(segments[:, 4])]  # thin ones first: where vessels cross, the wide one counts
    width = segments[:, 4] * canvas.scale
    value = 255 * np.minimum(segments[:, 4] ** 0.7, 1) * np.minimum(width, 1)  # thinner than a pixel: fainter instead
    ends = canvas.pixels(segments[:, :4].reshape(-1, 2)).reshape(-1, 4)
    pixels = np.maximum(np.rint(width), 1).astype(int)
    layer = canvas.blank()
    for (x1, y1, x2, y2), shade, thickness in zip(ends.tolist(), value.tolist(), pixels.tolist(), strict=True):
        cv2.line(layer, (x1, y1), (x2, y2), shade, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
    hila = canvas.blank()
    for side in (1, -1):
        y = (0.40 if side > 0 else 0.43) * h
        trunk = curve([(side * 3.2, y - 1.6), (side * 4.1, y - 0.2), (side * 4.6, y + 1.8), (side * 4.9, y + 4.2)])
        canvas.fill(hila, band(trunk, p["hilum"] * np.linspace(1.7, 0.8, len(trunk))))
    return 1.7 * canvas.blur(as_float(layer), 0.06) + 1.7 * p["hilum"] * canvas.blur(as_float(hila), 0.25)


def _airways(canvas, p):
    """Air in the trachea and the main bronchi, cm."""
    h, x = p["lung_height"], p["trachea_shift"]
    carina = (x, 0.335 * h)
    trachea = band(curve([(0.2 * x, -9), (0.4 * x, -3), (0.8 * x, 0.15 * h), carina]), 1.7)
    right = band(curve([carina, (x - 1.8, 0.375 * h), (x - 3.2, 0.42 * h)]), 1.25)
    left = band(curve([carina, (x + 2.0, 0.385 * h), (x + 4.0, 0.42 * h)]), 1.05)
    main = canvas.blur(canvas.area(trachea), 0.15)
    return 1.7 * main + 0.9 * canvas.blur(canvas.area(right, left), 0.15) * (1 - main)


def _gas(canvas, p, body):
    """The gastric bubble under the left dome, cm of air."""
    if not p["gastric_bubble"]:
        return np.zeros_like(canvas.x)
    radius = p["gastric_bubble"]
    x, y = 0.47 * p["half_width"], 0.825 * p["lung_height"] + p["left_dome"] + 1.0 + 0.75 * radius
    left = 1 - np.square((canvas.x - x) / (1.5 * radius)) - np.square((canvas.y - y) / (0.8 * radius))
    return canvas.blur(2.4 * radius * np.sqrt(np.clip(left, 0, 1)) * body, 0.12)


def _bones(canvas, p, lateral, body):
    """Everything bony, cm of water in excess of the soft tissue that it replaces."""
    bone = p["rib_density"] * _ribs(canvas, p, lateral)
    bone += p["bone_density"] * (_spine(canvas, p) + _shoulder_girdle(canvas, p))
    return bone * body


def _ribs(canvas, p, lateral):
    """Ribs 1 to 11 of both sides: helices round the thorax, seen from the front."""
    h = p["lung_height"]
    spacing = p["rib_spacing"] * h / 26
    back, front = canvas.blank(), canvas.blank()
    for number in range(11):
        top = -0.9 + number * spacing
        drop = p["rib_slope"] * np.interp(number, [0, 1, 4, 8, 10], [4.4, 6.2, 9.0, 11.5, 12.0]) * h / 26
        reach = float(lateral(min(top + 0.5 * drop, 1.25 * h))) + 0.25
        if number == 0:
            reach = min(reach, 0.52 * p["half_width"])
        end = np.interp(number, [0, 1, 5, 7, 10], [3.2, 3.6, 5.2, 7.5, 11.5])
        theta = np.linspace(0, np.pi, 60)
        out = np.sin(theta) ** 0.9
        x = np.where(theta < np.pi / 2, 2.0 + (reach - 2.0) * out, end + (reach - end) * out)
        y = top + drop * (1 - np.cos(theta)) / 2 - 0.35 * np.exp(-np.square((theta - 0.35) / 0.3))
        width = p["rib_width"] * np.interp(theta, [0, 0.4, 1.5, 2.5, np.pi], [0.75, 0.9, 0.95, 1.05, 1.1])
        width = width * (0.85 if number in (0, 10) else 1.0)
        for side in (1, -1):
            line = np.stack([side * x, y], axis=1)
            stop = 54 if number < 7 else 48
            parts = ((back, slice(0, 33)), (front, slice(30, stop))) if number < 9 else ((back, slice(0, 27)),)
            for layer, part in parts:
                canvas.fill(layer, band(line[part], width[part]), 1.0)
                marrow = line[part] + [0, 0.06 * p["rib_width"]]
                canvas.fill(layer, band(marrow, 0.66 * width[part]), 0.66)
    return 1.25 * canvas.blur(as_float(back), 0.08) + 0.8 * canvas.blur(as_float(front), 0.12)


def _spine(canvas, p):
    h = p["lung_height"]
    spacing = p["rib_spacing"] * h / 26
    bodies, posterior = canvas.blank(), canvas.blank()
    for number in range(-4, 18):
        y = -0.9 + (number + 0.1) * spacing
        x = p["spine_bend"] * math.sin(2.2 * y / h)
        width = np.interp(number, [-4, 0, 6, 13], [2.6, 3.2, 3.6, 4.4])
        tall = 0.4 * spacing
        outline = [(-1.05, -1), (-0.93, 0), (-1.05, 1), (1.05, 1), (0.93, 0), (1.05, -1)]
        canvas.fill(bodies, np.array(outline) * [width / 2, tall] + [x, y])
        angle = np.linspace(0, 2 * np.pi, 14)
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        for side in (1, -1):
            canvas.fill(posterior, circle * [0.33, 0.45] + [x + side * 0.33 * width, y - 0.2 * spacing], 0.7)
            process = np.array([(x + side * 0.4 * width, y - 0.1), (x + side * (0.5 * width + 0.9), y - 0.45)])
            canvas.fill(posterior, band(process, 0.75), 0.4)
        canvas.fill(posterior, circle * [0.3, 0.6] + [x, y + 0.3 * spacing], 0.8)
    return 1.7 * canvas.blur(as_float(bodies), 0.28) + 0.8 * canvas.blur(as_float(posterior), 0.16)


def _shoulder_girdle(canvas, p):
    h, shift, tilt = p["lung_height"], p["scapula_shift"], p["clavicle_tilt"]
    shoulder = p["shoulder_drop"]
    layers = {name: canvas.blank() for name in ("clavicle", "blade", "border", "humerus")}
    for side in (1, -1):
        clavicle = curve([(side * x, y) for x, y in (
            (1.9, 0.155 * h), (4.4, 0.135 * h - 0.3 * tilt), (8.0, 0.075 * h - 0.6 * tilt),
            (11.5, 0.03 * h - 0.5 * tilt + 0.4 * shoulder), (15.5, 0.045 * h + 0.7 * shoulder),
        )])  # fmt: skip
        width = np.interp(np.arange(40), [0, 5, 15, 30, 39], [1.7, 1.25, 1.0, 1.0, 1.3])
        width *= np.sqrt(np.clip(np.minimum(np.arange(40) + 1, 40 - np.arange(40)) / 3, 0, 1))  # round ends
        canvas.fill(layers["clavicle"], band(clavicle, width))
        canvas.fill(layers["clavicle"], band(clavicle, 0.6 * width), 0.6)
        blade = np.array([
            (9.6, 2.6), (9.9, 6.0), (10.7, 10.0), (11.8, 13.4), (12.8, 12.4), (14.3, 8.3), (15.6, 5.4), (15.2, 2.6),
            (12.5, 1.7), (9.6, 2.6),
        ])  # fmt: skip
        blade = curve((blade + np.array([shift, shoulder])) * [side, 1], 60)
        canvas.fill(layers["blade"], blade)
        canvas.fill(layers["border"], band(blade[4:40], 0.5))
        spine = curve([(side * (10.2 + shift), 3.9 + shoulder), (side * (13 + shift), 2.2 + shoulder),
                       (side * 17.2, 0.6 + shoulder)], 20)  # fmt: skip
        canvas.fill(layers["border"], band(spine, np.linspace(0.5, 1.2, 20)), 0.8)
        angle = np.linspace(0, 2 * np.pi, 30)
        head = np.array([side * (16.9 + 0.5 * p["arm_distance"]), 4.3 + shoulder])
        canvas.fill(layers["humerus"], head + 2.35 * np.stack([np.cos(angle), np.sin(angle)], axis=1))
        direction = np.array([side * math.sin(p["arm_angle"]), math.cos(p["arm_angle"])])
        shaft = head + np.linspace(0.8, 30, 20)[:, None] * direction + [side * 0.6, 0]
        canvas.fill(layers["humerus"], band(shaft, np.interp(np.arange(20), [0, 3, 19], [3.2, 2.3, 2.1])))
    smooth = {name: canvas.blur(as_float(layer), 0.1) for name, layer in layers.items()}
    return (
        2.0 * smooth["clavicle"]
        + 0.35 * smooth["blade"]
        + 0.5 * smooth["border"]
        + 1.7 * canvas.blur(smooth["humerus"], 0.3)
    )
