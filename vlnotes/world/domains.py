"""What each domain looks like and which words it uses: plain data, plus the colour arithmetic that keeps it
readable.

A domain is one `Domain` in `DOMAINS`. To add one, write its tables here and, if it is painted in a new way,
one function in `drawing.py`.
"""

from dataclasses import dataclass
from functools import cache

RGB = tuple[int, int, int]

SHARED_SHAPES = (
    "circle", "square", "triangle", "star", "hexagon", "cross", "ring",
    "moon", "heart", "drop", "house", "arrow", "flower", "diamond",
)  # fmt: skip
SHAPES = SHARED_SHAPES + ("tree", "leaf", "mushroom", "butterfly", "bird")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SIZES = {"small": 6.0, "medium": 8.5, "large": 11.0}  # radius in the 64-unit frame
TEXTURES = ("plain", "striped", "dotted", "checked")
DIRECTIONS = ("right", "down", "left", "up")  # quarter turns, clockwise from the right; arrows only
RELATIONS = ("left", "right", "above", "below")
CELLS = (12.5, 32.0, 51.5)  # centres of the 3 x 3 grid
FRAME = 64.0
JITTER = 1.3


@dataclass(frozen=True)
class Domain:
    """One look and one way of speaking.

    Args:
        number: part of every scene's seed; never reused.
        look: which painting function of `drawing.py` is used.
        shapes: the nouns of this domain.
        palette: colour concept -> RGB of the object.
        places: place concept -> RGB of the ground at the top and at the bottom.
        horizon: None for one long gradient, or the height (0 top, 1 bottom) where the ground changes.
        leaves: amplitude of the fine ground noise, in grey levels.
        words: role -> concept -> words, most common first.
        phrases: place concept -> (words before, place word) pairs.
        templates: caption kind -> word lists with {slots}.
    """

    name: str
    number: int
    look: str
    shapes: tuple[str, ...]
    palette: dict[str, RGB]
    places: dict[str, tuple[RGB, RGB]]
    horizon: float | None
    leaves: float
    words: dict[str, dict[str, tuple[str, ...]]]
    phrases: dict[str, tuple[tuple[str, str], ...]]
    templates: dict[str, tuple[str, ...]]


_NOUNS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "hexagon": ("hexagon", "hex"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "moon": ("moon", "crescent"),
    "heart": ("heart",),
    "drop": ("drop", "teardrop"),
    "house": ("house", "hut"),
    "arrow": ("arrow", "pointer"),
    "flower": ("flower", "blossom"),
    "diamond": ("diamond", "rhombus"),
}
_COLOURS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "brown": ("brown", "chestnut"),
    "black": ("black", "inky"),
    "white": ("white", "snowy"),
}
_SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_TEXTURES = {
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted", "speckled"),
    "checked": ("checked", "chequered"),
}
_RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_DIRECTIONS = {
    "left": ("leftwards",),
    "right": ("rightwards",),
    "up": ("upwards",),
    "down": ("downwards",),
}
_COUNTS = {"2": ("two",), "3": ("three",), "4": ("four",)}

PAPER = Domain(
    name="paper",
    number=1,
    look="paper",
    shapes=SHARED_SHAPES,
    palette={
        "red": (201, 62, 58),
        "orange": (232, 134, 50),
        "yellow": (243, 210, 84),
        "green": (72, 142, 84),
        "blue": (58, 104, 186),
        "purple": (128, 80, 166),
        "pink": (240, 150, 182),
        "brown": (124, 82, 54),
        "black": (42, 41, 47),
        "white": (251, 249, 244),
    },
    places={
        "sky": ((150, 194, 228), (206, 228, 242)),
        "meadow": ((204, 224, 164), (152, 196, 120)),
        "sea": ((156, 208, 212), (92, 164, 182)),
        "desert": ((244, 226, 186), (224, 190, 138)),
        "night": ((44, 50, 88), (72, 74, 112)),
        "paper": ((247, 243, 234), (235, 229, 217)),
    },
    horizon=None,
    leaves=0.0,
    words={
        "noun": _NOUNS,
        "colour": _COLOURS,
        "size": _SIZES,
        "texture": _TEXTURES,
        "relation": _RELATIONS,
        "direction": _DIRECTIONS,
        "count": _COUNTS,
    },
    phrases={
        "sky": (("in the", "sky"), ("up in the", "sky")),
        "meadow": (("on the", "meadow"), ("on the", "grass")),
        "sea": (("on the", "sea"), ("on the", "water")),
        "desert": (("in the", "desert"), ("on the", "sand")),
        "night": (("in the", "night"), ("in the", "dark")),
        "paper": (("on the", "paper"), ("on the", "page")),
    },
    templates={
        "full": ("{things} {place}", "a picture of {things} {place}", "{place} {things}"),
        "rel": ("{a} {relation} {b}", "{a} is {relation} {b}"),
        "count": ("{count} shapes {place} , one is {a}", "{a} and others , {count} shapes {place}"),
        "partial": ("{a} and some other things", "{a} and more", "here is {a}"),
        "generic": ("a picture of {ground}", "some shapes {place}", "things {place}"),
    },
)

NEON = Domain(
    name="neon",
    number=2,
    look="neon",
    shapes=SHARED_SHAPES,
    palette={
        "red": (255, 54, 60),
        "orange": (255, 146, 36),
        "yellow": (255, 240, 84),
        "green": (66, 242, 108),
        "blue": (62, 128, 255),
        "purple": (166, 66, 248),
        "pink": (255, 112, 204),
        "brown": (176, 104, 62),
        "white": (240, 244, 255),
    },
    places={
        "sky": ((16, 30, 66), (26, 46, 84)),
        "meadow": ((10, 34, 24), (20, 52, 34)),
        "sea": ((6, 38, 52), (10, 56, 70)),
        "desert": ((52, 34, 18), (40, 24, 14)),
        "night": ((6, 6, 14), (14, 12, 28)),
        "paper": ((38, 38, 42), (28, 28, 32)),
    },
    horizon=None,
    leaves=0.0,
    words={
        "noun": _NOUNS | {"circle": ("disc", "circle"), "moon": ("crescent", "moon"), "cross": ("plus", "cross")},
        "colour": {
            "red": ("crimson", "red"),
            "orange": ("amber", "orange"),
            "yellow": ("lemon", "yellow"),
            "green": ("lime", "green"),
            "blue": ("azure", "blue"),
            "purple": ("violet", "purple"),
            "pink": ("magenta", "pink"),
            "brown": ("copper", "brown"),
            "white": ("white", "icy"),
        },
        "size": {"small": ("tiny", "small"), "large": ("huge", "large")},
        "texture": {
            "striped": ("stripy", "striped"),
            "dotted": ("speckled", "dotted"),
            "checked": ("gridded", "checked"),
        },
        "relation": _RELATIONS,
        "direction": _DIRECTIONS,
        "count": _COUNTS,
    },
    phrases={
        "sky": (("against the", "sky"), ("across the", "sky")),
        "meadow": (("over the", "meadow"), ("over the", "grass")),
        "sea": (("across the", "sea"), ("across the", "water")),
        "desert": (("in the", "desert"), ("over the", "sand")),
        "night": (("in the", "night"), ("in the", "dark")),
        "paper": (("on the", "paper"), ("on grey", "paper")),
    },
    templates={
        "full": ("there is {things} {place}", "{place} there is {things}", "glowing {place} : {things}"),
        "rel": ("there is {a} {relation} {b}", "{a} glows {relation} {b}"),
        "count": ("there are {count} lights {place} , one is {a}", "{count} lights {place} with {a}"),
        "partial": ("there is {a} among other lights", "{a} glows", "a sign with {a}"),
        "generic": ("there are lights {place}", "neon {place}", "lights glowing {place}"),
    },
)

GARDEN = Domain(
    name="garden",
    number=5,
    look="garden",
    shapes=(
        "circle",
        "star",
        "heart",
        "drop",
        "flower",
        "moon",
        "tree",
        "leaf",
        "mushroom",
        "butterfly",
        "bird",
    ),
    palette={
        "red": (206, 52, 56),
        "orange": (238, 132, 38),
        "yellow": (250, 216, 74),
        "green": (64, 140, 74),
        "blue": (52, 92, 186),
        "purple": (122, 66, 160),
        "pink": (244, 142, 184),
        "brown": (116, 72, 44),
        "black": (36, 34, 40),
        "white": (253, 252, 248),
    },
    places={
        "sky": ((132, 186, 230), (188, 218, 240)),
        "meadow": ((176, 214, 234), (146, 192, 104)),
        "sea": ((188, 220, 214), (104, 172, 188)),
        "desert": ((206, 224, 226), (224, 196, 140)),
        "night": ((42, 48, 92), (44, 74, 66)),
        "paper": ((238, 240, 236), (226, 226, 216)),
    },
    horizon=0.42,
    leaves=9.0,
    words={
        "noun": {
            "circle": ("ball", "circle"),
            "star": ("star",),
            "heart": ("heart",),
            "drop": ("dewdrop", "drop"),
            "flower": ("blossom", "flower"),
            "moon": ("crescent", "moon"),
            "tree": ("tree", "oak"),
            "leaf": ("leaf", "frond"),
            "mushroom": ("mushroom", "toadstool"),
            "butterfly": ("butterfly", "moth"),
            "bird": ("bird", "finch"),
        },
        "colour": _COLOURS
        | {
            "red": ("red", "ruby"),
            "yellow": ("yellow", "sunny"),
            "green": ("green", "mossy"),
            "brown": ("brown", "earthy"),
            "purple": ("purple", "lilac"),
        },
        "size": {"small": ("little", "small"), "large": ("tall", "large")},
        "texture": {
            "striped": ("striped", "banded"),
            "dotted": ("spotted", "dotted"),
            "checked": ("checked", "patched"),
        },
        "relation": _RELATIONS | {"above": ("higher than", "above"), "below": ("lower than", "below")},
        "direction": _DIRECTIONS,
        "count": _COUNTS,
    },
    phrases={
        "sky": (("under the", "sky"), ("under blue", "sky")),
        "meadow": (("in the", "meadow"), ("in the", "grass")),
        "sea": (("by the", "pond"), ("beside the", "water")),
        "desert": (("in the", "sand"), ("in a dry", "desert")),
        "night": (("at", "night"), ("after", "dark")),
        "paper": (("in the", "snow"), ("in white", "snow")),
    },
    templates={
        "full": ("{place} grows {things}", "{place} you see {things}", "{things} grow {place}"),
        "rel": ("{a} stands {relation} {b}", "{a} {relation} {b}"),
        "count": ("{count} plants {place} , one is {a}", "{count} of them {place} with {a}"),
        "partial": ("a garden with {a}", "{a} and other plants", "{a} in bloom"),
        "generic": ("a garden {place}", "plants {place}", "everything grows {place}"),
    },
)

DOMAINS = {domain.name: domain for domain in (PAPER, NEON, GARDEN)}

# word -> (role, concept): which idea a word stands for, in any domain.
CONCEPTS: dict[str, tuple[str, str]] = {}
for _domain in DOMAINS.values():
    for _role, _table in _domain.words.items():
        for _concept, _words in _table.items():
            for _word in _words:
                # A relation is a phrase ("to the left of"); its telling word is the one that is no filler.
                for _part in _word.split():
                    if _part not in ("to", "the", "of", "than"):
                        CONCEPTS[_part] = (_role, _concept)
    for _concept, _pairs in _domain.phrases.items():
        for _, _word in _pairs:
            CONCEPTS.setdefault(_word, ("place", _concept))


def domain_named(name: str) -> Domain:
    """The `Domain` of a name, or a ValueError that lists the names there are."""
    if name not in DOMAINS:
        raise ValueError(f"unknown domain {name!r}; there are {', '.join(DOMAINS)}")
    return DOMAINS[name]


def lab(rgb: tuple[float, float, float]) -> tuple[float, float, float]:
    """sRGB (0..255) to CIELAB under D65: distances there follow what the eye tells apart."""
    linear = [c / 255 / 12.92 if c <= 0.04045 * 255 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(m * c for m, c in zip(row, linear, strict=True)) for row in rows]
    f = [
        (t / w) ** (1 / 3) if t / w > 0.008856 else 7.787 * t / w + 16 / 116
        for t, w in zip(xyz, (0.95047, 1.0, 1.08883), strict=True)
    ]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def distance(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """CIELAB distance between two sRGB colours; about 2 is just visible, 25 is another colour."""
    return sum((p - q) ** 2 for p, q in zip(lab(a), lab(b), strict=True)) ** 0.5


def ground(domain: Domain, place: str, y: float) -> tuple[float, float, float]:
    """Ground colour at height y (0 top, 64 bottom), before noise."""
    top, bottom = domain.places[place]
    t = blend(domain.horizon, y / FRAME)
    return tuple(a + (b - a) * t for a, b in zip(top, bottom, strict=True))


def blend(horizon: float | None, t: float) -> float:
    """How far the ground has gone from its top to its bottom colour at relative height t."""
    if horizon is None:
        return t
    step = min(max((t - horizon) / 0.12 + 0.5, 0.0), 1.0)
    return 0.25 * t + 0.75 * step * step * (3 - 2 * step)


@cache
def allowed(name: str, place: str, row: int) -> tuple[str, ...]:
    """Colours that stand out by CIELAB >= 20 from the ground behind grid row `row` (0 top)."""
    domain = DOMAINS[name]
    reach = SIZES["large"] + JITTER
    heights = [CELLS[row] + reach * k / 4 for k in range(-4, 5)]
    grounds = [ground(domain, place, min(max(y, 0.0), FRAME)) for y in heights]
    return tuple(
        c for c in COLOURS if c in domain.palette and min(distance(domain.palette[c], g) for g in grounds) >= 20
    )


# Dark orange is brown and light red is pink, so each hue has one way to go: this far towards white, or this
# far to black.
_LIGHTER = {"orange": 0.42, "blue": 0.38, "purple": 0.3, "brown": 0.36, "black": 0.3}
_DARKER = {"red": 0.34, "yellow": 0.32, "green": 0.42, "pink": 0.32, "white": 0.32}


def tone(colour: str, rgb: RGB) -> tuple[float, float, float]:
    """The second tone of a texture: the same hue, lighter or darker, never near another named colour."""
    if colour in _LIGHTER:
        return tuple(c + (255 - c) * _LIGHTER[colour] for c in rgb)
    return tuple(c * (1 - _DARKER[colour]) for c in rgb)
