"""The domains as plain data: palettes, grounds, words and sentences. `domains.py` says what can be asked of them."""

from dataclasses import dataclass

RGB = tuple[int, int, int]

SHARED_SHAPES = (
    "circle", "square", "triangle", "star", "hexagon", "cross", "ring",
    "moon", "heart", "drop", "house", "arrow", "flower", "diamond",
)  # fmt: skip
SHAPES = SHARED_SHAPES + ("tree", "leaf", "mushroom", "butterfly", "bird")
SHAPES += ("boat", "fish", "anchor", "wave", "lighthouse")
SHAPES += ("spade", "club", "knight", "umbrella", "telephone", "plane", "note", "flag", "sun")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES += DIGITS
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
        look: which painting function of `looks.py` is used.
        shapes: the nouns of this domain.
        palette: colour concept -> RGB of the object.
        places: place concept -> RGB of the ground at the top and at the bottom.
        horizon: None for one long gradient, or the height (0 top, 1 bottom) where the ground changes.
        leaves: amplitude of the fine ground noise, in grey levels.
        words: role -> concept -> words, most common first.
        phrases: place concept -> (words before, place word) pairs.
        templates: caption kind -> word lists with {slots}.
        articles: False says "red ring" for "a red ring".
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
    articles: bool = True


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

CHALK = Domain(
    name="chalk",
    number=3,
    look="chalk",
    shapes=SHARED_SHAPES,
    palette={
        "red": (240, 104, 100),
        "orange": (250, 172, 104),
        "yellow": (248, 238, 150),
        "green": (138, 220, 140),
        "blue": (120, 178, 248),
        "purple": (184, 138, 236),
        "pink": (252, 180, 212),
        "brown": (188, 138, 104),
        "white": (246, 246, 240),
    },
    places={
        "sky": ((44, 60, 84), (56, 74, 100)),
        "meadow": ((34, 64, 48), (44, 78, 58)),
        "sea": ((26, 62, 70), (34, 76, 84)),
        "desert": ((72, 56, 44), (60, 46, 36)),
        "night": ((26, 27, 33), (36, 38, 46)),
        "paper": ((70, 72, 74), (58, 60, 63)),
    },
    horizon=None,
    leaves=4.0,
    words={
        "noun": _NOUNS
        | {
            "circle": ("disc", "circle"),
            "square": ("box", "square"),
            "cross": ("plus", "cross"),
            "moon": ("crescent", "moon"),
        },
        "colour": {
            "red": ("red", "coral"),
            "orange": ("orange", "apricot"),
            "yellow": ("yellow", "primrose"),
            "green": ("green", "mint"),
            "blue": ("blue", "powdery"),
            "purple": ("purple", "lavender"),
            "pink": ("pink", "rose"),
            "brown": ("brown", "tan"),
            "white": ("white", "chalky"),
        },
        "size": _SIZES,
        "texture": {"striped": ("hatched", "striped"), "dotted": ("dotted", "stippled"), "checked": ("checked",)},
        "relation": {
            "left": ("left of",),
            "right": ("right of",),
            "above": ("above", "over"),
            "below": ("below", "under"),
        },
        "direction": _DIRECTIONS,
        "count": _COUNTS,
    },
    phrases={
        "sky": (("in", "sky"), ("sketched in", "sky")),
        "meadow": (("on", "meadow"), ("on", "grass")),
        "sea": (("at", "sea"), ("on", "water")),
        "desert": (("in", "desert"), ("on", "sand")),
        "night": (("at", "night"), ("in", "dark")),
        "paper": (("on", "slate"), ("on bare", "slate")),
    },
    templates={
        "full": ("{things} {place}", "{place} : {things}", "drawn {place} : {things}"),
        "rel": ("{a} {relation} {b}", "{a} drawn {relation} {b}"),
        "count": ("{count} sketches {place} , one {a}", "{count} chalk marks {place} , {a}"),
        "partial": ("{a} and more", "sketch of {a}", "chalk marks , one {a}"),
        "generic": ("chalk marks {place}", "board , sketches {place}", "lesson {place}"),
    },
    articles=False,
)

KNIT = Domain(
    name="knit",
    number=4,
    look="knit",
    shapes=("circle", "square", "star", "cross", "moon", "heart", "drop", "house", "flower", "diamond"),
    palette={
        "red": (208, 64, 66),
        "orange": (232, 132, 50),
        "yellow": (242, 208, 88),
        "green": (82, 128, 82),
        "blue": (58, 100, 172),
        "purple": (128, 72, 138),
        "pink": (230, 150, 172),
        "brown": (122, 78, 48),
        "black": (40, 39, 43),
        "white": (248, 244, 232),
    },
    places={
        "sky": ((150, 184, 208), (164, 196, 216)),
        "meadow": ((164, 190, 132), (152, 180, 122)),
        "sea": ((120, 174, 178), (108, 162, 168)),
        "desert": ((218, 196, 158), (208, 184, 146)),
        "night": ((48, 50, 80), (56, 58, 88)),
        "paper": ((214, 208, 198), (204, 198, 188)),
    },
    horizon=None,
    leaves=0.0,
    words={
        "noun": {
            "circle": ("button", "circle"),
            "square": ("patch", "square"),
            "star": ("star",),
            "cross": ("cross", "plus"),
            "moon": ("moon", "crescent"),
            "heart": ("heart",),
            "drop": ("drop", "teardrop"),
            "house": ("house", "cottage"),
            "flower": ("flower", "blossom"),
            "diamond": ("diamond", "lozenge"),
        },
        "colour": {
            "red": ("red", "cherry"),
            "orange": ("orange", "pumpkin"),
            "yellow": ("golden", "yellow"),
            "green": ("green", "olive"),
            "blue": ("blue", "denim"),
            "purple": ("purple", "plum"),
            "pink": ("rosy", "pink"),
            "brown": ("brown", "chestnut"),
            "black": ("black", "charcoal"),
            "white": ("white", "creamy"),
        },
        "size": {"small": ("small", "little"), "large": ("big", "large")},
        "texture": {"striped": ("stripy", "striped"), "dotted": ("spotted", "dotted"), "checked": ("checked", "plaid")},
        "relation": _RELATIONS | {"above": ("over", "above"), "below": ("under", "below")},
        "direction": _DIRECTIONS,
        "count": _COUNTS,
    },
    phrases={
        "sky": (("on the", "sky"), ("onto the", "sky")),
        "meadow": (("on the", "meadow"), ("onto the", "grass")),
        "sea": (("on the", "sea"), ("onto the", "water")),
        "desert": (("on the", "desert"), ("onto the", "sand")),
        "night": (("on the", "night"), ("onto the", "dark")),
        "paper": (("on the", "linen"), ("onto plain", "linen")),
    },
    templates={
        "full": ("{things} stitched {place}", "sewn {place} : {things}", "knitted {place} : {things}"),
        "rel": ("{a} is stitched {relation} {b}", "{a} is sewn {relation} {b}"),
        "count": ("{count} motifs are sewn {place} , one is {a}", "{count} motifs {place} with {a}"),
        "partial": ("{a} is stitched with other motifs", "a jumper with {a}", "{a} in wool"),
        "generic": ("motifs are stitched {place}", "a jumper knitted {place}", "wool {place}"),
    },
)

HARBOUR = Domain(
    name="harbour",
    number=6,
    look="harbour",
    shapes=("circle", "star", "ring", "moon", "drop", "house", "boat", "fish", "anchor", "wave", "lighthouse"),
    palette={
        "red": (198, 52, 52),
        "orange": (236, 128, 44),
        "yellow": (248, 212, 76),
        "green": (44, 122, 84),
        "blue": (40, 84, 172),
        "purple": (120, 66, 156),
        "pink": (242, 142, 176),
        "brown": (112, 70, 46),
        "black": (32, 34, 42),
        "white": (252, 252, 250),
    },
    places={
        "sky": ((168, 206, 234), (116, 176, 206)),
        "meadow": ((206, 224, 222), (132, 184, 148)),
        "sea": ((190, 222, 228), (92, 168, 184)),
        "desert": ((234, 218, 196), (186, 190, 168)),
        "night": ((46, 50, 88), (34, 58, 92)),
        "paper": ((222, 226, 228), (190, 200, 206)),
    },
    horizon=0.36,
    leaves=0.0,
    words={
        "noun": {
            "circle": ("buoy", "circle"),
            "star": ("star", "starfish"),
            "ring": ("lifebelt", "ring"),
            "moon": ("crescent", "moon"),
            "drop": ("drop", "splash"),
            "house": ("cabin", "house"),
            "boat": ("boat", "dinghy"),
            "fish": ("fish", "herring"),
            "anchor": ("anchor",),
            "wave": ("wave", "swell"),
            "lighthouse": ("lighthouse", "beacon"),
        },
        "colour": _COLOURS
        | {
            "red": ("red", "scarlet"),
            "orange": ("orange", "rusty"),
            "blue": ("navy", "blue"),
            "brown": ("brown", "wooden"),
            "black": ("black", "tarry"),
            "white": ("white", "foamy"),
        },
        "size": {"small": ("small", "little"), "large": ("great", "large")},
        "texture": {
            "striped": ("striped", "banded"),
            "dotted": ("dotted", "speckled"),
            "checked": ("checked", "netted"),
        },
        "relation": {
            "left": ("to port of", "left of"),
            "right": ("to starboard of", "right of"),
            "above": ("above",),
            "below": ("below",),
        },
        "direction": _DIRECTIONS,
        "count": _COUNTS,
    },
    phrases={
        "sky": (("under the", "sky"), ("under a clear", "sky")),
        "meadow": (("off the", "shore"), ("along the", "coast")),
        "sea": (("at", "sea"), ("on the", "water")),
        "desert": (("by the", "dunes"), ("off the", "sand")),
        "night": (("at", "night"), ("in the", "dark")),
        "paper": (("in the", "fog"), ("in the", "mist")),
    },
    templates={
        "full": ("{things} {place}", "we sight {things} {place}", "{place} we sight {things}"),
        "rel": ("{a} lies {relation} {b}", "{a} {relation} {b}"),
        "count": ("{count} signals {place} , one is {a}", "we sight {count} signals {place} , {a} first"),
        "partial": ("{a} ahoy", "we sight {a}", "{a} and other signals"),
        "generic": ("a harbour {place}", "all quiet {place}", "signals {place}"),
    },
)

PIXEL = Domain(
    name="pixel",
    number=7,
    look="pixel",
    shapes=SHARED_SHAPES,
    palette={
        "red": (208, 52, 60),
        "orange": (240, 136, 48),
        "yellow": (250, 220, 84),
        "green": (56, 136, 72),
        "blue": (52, 92, 196),
        "purple": (124, 68, 164),
        "pink": (246, 148, 190),
        "brown": (124, 80, 52),
        "black": (32, 30, 44),
        "white": (250, 250, 246),
    },
    places={
        "sky": ((150, 196, 236), (198, 224, 244)),
        "meadow": ((190, 220, 150), (156, 202, 124)),
        "sea": ((140, 206, 212), (92, 170, 190)),
        "desert": ((244, 226, 184), (226, 194, 140)),
        "night": ((40, 44, 84), (68, 70, 116)),
        "paper": ((236, 232, 226), (218, 214, 208)),
    },
    horizon=None,
    leaves=0.0,
    words={
        "noun": _NOUNS | {"square": ("block", "square"), "cross": ("plus", "cross"), "diamond": ("gem", "diamond")},
        "colour": {c: words[:1] for c, words in _COLOURS.items()},
        "size": {"small": ("mini", "small"), "large": ("big", "large")},
        "texture": {"striped": ("striped",), "dotted": ("dotted",), "checked": ("checked", "gridded")},
        "relation": {"left": ("left of",), "right": ("right of",), "above": ("above",), "below": ("below",)},
        "direction": _DIRECTIONS,
        "count": {"2": ("2x",), "3": ("3x",), "4": ("4x",)},
    },
    phrases={
        "sky": (("in", "sky"), ("in the", "sky")),
        "meadow": (("on", "meadow"), ("on", "grass")),
        "sea": (("on", "sea"), ("on", "water")),
        "desert": (("in", "desert"), ("on", "sand")),
        "night": (("at", "night"), ("in the", "dark")),
        "paper": (("on", "paper"), ("on", "page")),
    },
    templates={
        "full": ("{things} {place}", "{place} : {things}"),
        "rel": ("{a} {relation} {b}",),
        "count": ("{count} sprites {place} , got {a}", "{count} sprites {place} , {a}"),
        "partial": ("{a}", "sprite : {a}", "got {a}"),
        "generic": ("level {place}", "sprites {place}", "{place}"),
    },
    articles=False,
)

GLYPHS = Domain(
    name="glyphs",
    number=8,
    look="glyphs",
    shapes=(
        "star",
        "heart",
        "diamond",
        "flower",
        "anchor",
        "spade",
        "club",
        "knight",
        "umbrella",
        "telephone",
        "plane",
        "note",
        "flag",
        "sun",
    ),
    palette=PAPER.palette,
    places={
        "sky": ((176, 208, 232), (196, 220, 238)),
        "meadow": ((200, 220, 172), (184, 208, 154)),
        "sea": ((152, 204, 206), (128, 188, 196)),
        "desert": ((240, 222, 186), (232, 210, 168)),
        "night": ((44, 50, 88), (56, 60, 98)),
        "paper": ((244, 240, 230), (236, 231, 220)),
    },
    horizon=None,
    leaves=0.0,
    words={
        "noun": {
            "star": ("star",),
            "heart": ("heart",),
            "diamond": ("diamond",),
            "flower": ("florette", "flower"),
            "anchor": ("anchor",),
            "spade": ("spade",),
            "club": ("club",),
            "knight": ("knight",),
            "umbrella": ("umbrella",),
            "telephone": ("telephone", "phone"),
            "plane": ("airplane", "plane"),
            "note": ("note",),
            "flag": ("flag", "banner"),
            "sun": ("sun",),
        },
        "colour": _COLOURS,
        "size": _SIZES,
        "texture": _TEXTURES,
        "relation": _RELATIONS,
        "direction": _DIRECTIONS,
        "count": _COUNTS,
    },
    phrases={
        "sky": (("on the", "sky"), ("printed on the", "sky")),
        "meadow": (("on the", "meadow"), ("on the", "grass")),
        "sea": (("on the", "sea"), ("on the", "water")),
        "desert": (("on the", "desert"), ("on the", "sand")),
        "night": (("on the", "night"), ("in the", "dark")),
        "paper": (("on the", "paper"), ("on the", "page")),
    },
    templates={
        "full": ("{things} {place}", "symbols {place} : {things}", "{place} we read {things}"),
        "rel": ("{a} {relation} {b}", "{a} set {relation} {b}"),
        "count": ("{count} symbols {place} , one is {a}", "{a} among {count} symbols {place}"),
        "partial": ("{a} and other symbols", "the symbol of {a}", "we read {a}"),
        "generic": ("symbols {place}", "type {place}", "signs {place}"),
    },
)

DIGITS_DOMAIN = Domain(
    name="digits",
    number=9,
    look="digits",
    shapes=DIGITS,
    palette=PAPER.palette,
    places=GLYPHS.places,
    horizon=None,
    leaves=0.0,
    words={
        "noun": {name: (digit,) for name, digit in zip(DIGITS, "0123456789", strict=True)},
        "colour": _COLOURS,
        "size": _SIZES,
        "texture": _TEXTURES,
        "relation": _RELATIONS,
        "direction": _DIRECTIONS,
        "count": _COUNTS,
    },
    phrases={
        "sky": (("on the", "sky"), ("written on the", "sky")),
        "meadow": (("on the", "meadow"), ("on the", "grass")),
        "sea": (("on the", "sea"), ("on the", "water")),
        "desert": (("on the", "desert"), ("in the", "sand")),
        "night": (("on the", "night"), ("in the", "dark")),
        "paper": (("on the", "paper"), ("on the", "page")),
    },
    templates={
        "full": ("{things} {place}", "numbers {place} : {things}", "somebody wrote {things} {place}"),
        "rel": ("{a} {relation} {b}", "{a} written {relation} {b}"),
        "count": ("{count} numbers {place} , among them {a}", "{a} among {count} numbers {place}"),
        "partial": ("{a} and other numbers", "somebody wrote {a}", "a sum with {a}"),
        "generic": ("numbers {place}", "somebody wrote {place}", "handwriting {place}"),
    },
)
