"""The picture world: scenes, their pictures, their captions, and everything that is true of them.

`World` gives scenes; `draw`, `captions`, `holds`, `truth`, `boxes` and `masks` say what follows from a scene.
`questions`, `statements`, `hypotheses`, `assignments` and `winoground` make tasks of them, with exact answers.
"""

from vlnotes.world.asking import ANSWERS, LABELS, QUANTIFIERS, QUESTION_KINDS, answers, task_texts
from vlnotes.world.captions import KINDS, Caption, Span, captions, inks, prompts
from vlnotes.world.closeups import FACTORS, close_ups, factor_labels
from vlnotes.world.domains import COLOURS, CONCEPTS, DOMAINS, RELATIONS, SHAPES, SIZES, TEXTURES
from vlnotes.world.drawing import boxes, boxes_of, draw, masks
from vlnotes.world.edits import CAPTION_OF, EDITS, Binding, beside_neighbours, edits, hard_gallery, winoground
from vlnotes.world.export import COUNTS, SAMPLE, cache_folder, ceilings, contact_sheet, export, make
from vlnotes.world.grounding import ROLES, Grounded, grounded_words, word_regions
from vlnotes.world.hypotheses import Hypothesis, hypotheses
from vlnotes.world.noise import NOISES, with_noise
from vlnotes.world.pairs import Pairs, pairs
from vlnotes.world.predicates import describe, holds, truth
from vlnotes.world.questions import Question, questions
from vlnotes.world.scenes import HELD_OUT, SPLITS, VERSION, Scene, Thing, from_json, to_json
from vlnotes.world.statements import Assignment, Statement, assignments, statements
from vlnotes.world.world import World, heroes

__all__ = [
    "ANSWERS",
    "CAPTION_OF",
    "COLOURS",
    "COUNTS",
    "CONCEPTS",
    "DOMAINS",
    "EDITS",
    "FACTORS",
    "HELD_OUT",
    "KINDS",
    "LABELS",
    "NOISES",
    "QUANTIFIERS",
    "QUESTION_KINDS",
    "RELATIONS",
    "ROLES",
    "SAMPLE",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "TEXTURES",
    "VERSION",
    "Assignment",
    "Binding",
    "Caption",
    "Grounded",
    "Hypothesis",
    "Pairs",
    "Question",
    "Scene",
    "Span",
    "Statement",
    "Thing",
    "World",
    "answers",
    "assignments",
    "boxes",
    "boxes_of",
    "cache_folder",
    "captions",
    "ceilings",
    "close_ups",
    "contact_sheet",
    "describe",
    "draw",
    "beside_neighbours",
    "edits",
    "export",
    "factor_labels",
    "from_json",
    "grounded_words",
    "hard_gallery",
    "heroes",
    "holds",
    "hypotheses",
    "inks",
    "make",
    "masks",
    "pairs",
    "prompts",
    "questions",
    "statements",
    "task_texts",
    "to_json",
    "truth",
    "winoground",
    "with_noise",
    "word_regions",
]
