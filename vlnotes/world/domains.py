"""What each domain looks like and which words it uses, and the colour arithmetic that keeps it readable.

A domain is one `Domain` in `DOMAINS`. To add one, write its tables in `domain_tables.py` and, if it is painted in a
new way, one function in `looks.py`.
"""

from functools import cache

from vlnotes.world.domain_tables import (
    CELLS,
    CHALK,
    COLOURS,
    DIGITS,
    DIGITS_DOMAIN,
    DIRECTIONS,
    FRAME,
    GARDEN,
    GLYPHS,
    HARBOUR,
    JITTER,
    KNIT,
    NEON,
    PAPER,
    PIXEL,
    RELATIONS,
    RGB,
    SHAPES,
    SHARED_SHAPES,
    SIZES,
    TEXTURES,
    Domain,
)

__all__ = [
    "CELLS",
    "COLOURS",
    "DIGITS",
    "CONCEPTS",
    "DIRECTIONS",
    "DOMAINS",
    "FILLERS",
    "FRAME",
    "JITTER",
    "RELATIONS",
    "SHAPES",
    "SHARED_SHAPES",
    "SIZES",
    "TEXTURES",
    "Domain",
    "allowed",
    "blend",
    "distance",
    "domain_named",
    "ground",
    "lab",
    "tone",
]

DOMAINS = {domain.name: domain for domain in (PAPER, NEON, CHALK, KNIT, GARDEN, HARBOUR, PIXEL, GLYPHS, DIGITS_DOMAIN)}

FILLERS = ("to", "the", "of", "than")  # words of a relation that say nothing alone
# word -> (role, concept): which idea a word stands for, in any domain.
CONCEPTS: dict[str, tuple[str, str]] = {}
for _domain in DOMAINS.values():
    for _role, _table in _domain.words.items():
        for _concept, _words in _table.items():
            for _word in _words:
                # A relation is a phrase ("to the left of"); its telling word is the one that is no filler.
                for _part in _word.split():
                    if _part not in FILLERS:
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
