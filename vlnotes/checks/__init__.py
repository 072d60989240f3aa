"""Checks for the notebooks: graduation of taught functions, and exercises whose mistakes have names.

`checks.graduate("vlnotes.contrastive.clip_loss", my_clip_loss, {...})` proves that a function built in a
notebook and the one in the module agree in value and gradient. `checks.info_nce(info_nce)` looks at a
reader's answer to the exercise of that name: it says "not solved yet", "right", or which mistake it sees, and
never raises. `python -m vlnotes.checks` writes the table of graduations and the numbers quoted in the prose.
"""

from vlnotes.checks.exercises import Exercise, Verdict
from vlnotes.checks.graduation import graduate, unit_rows
from vlnotes.checks.n00_start_here import chance, cosine, r_at_1
from vlnotes.checks.n01_picture_world import bite, ceiling, false_captions, swap_lies, true_of
from vlnotes.checks.n02_contrastive_matrix import (
    gradient_of_logits,
    info_nce,
    lowest_loss,
    mask_false_negatives,
    online_logsumexp,
)
from vlnotes.checks.n03_moco import back_in_order, collapsed, follow_once, push_rows, queue_ages
from vlnotes.checks.n04_albef_itc import itc_logits, mean_key_loss, mixed_targets, ramp, targets_with_ids
from vlnotes.checks.n05_albef_fusion import (
    group_score,
    hard_negative_weights,
    pairs_looked_at,
    soft_words,
    two_stages,
)
from vlnotes.checks.n06_gradcam import looks_around, near_hit, no_gradient, sentence_of, word_map
from vlnotes.checks.n07_downstream import balanced, entailment_loss, rank_answers, shared_parameters
from vlnotes.checks.n08_optimal_transport import (
    carriers,
    cheapest_pairing,
    codebook_gradient,
    log_sinkhorn,
    repaired,
)
from vlnotes.checks.n09_codis import code_targets, codes_in_use, prototype_loss, same_codeword
from vlnotes.checks.n10_self_distillation import (
    auroc,
    beyond_the_line,
    column_targets,
    mixed_rows,
    own_gradient,
    soft_share,
)
from vlnotes.checks.n11_xclip import agreement, last_norm, most_entropy, tied_recall, what_a_code_says
from vlnotes.checks.n12_spatial_disorder import deviation, forgotten, left_over, who_wins
from vlnotes.checks.n13_modx import chance_kept, pulled_back, same_strength, term_gradient

__all__ = [
    "Exercise",
    "Verdict",
    "agreement",
    "auroc",
    "back_in_order",
    "balanced",
    "beyond_the_line",
    "bite",
    "carriers",
    "ceiling",
    "chance",
    "chance_kept",
    "cheapest_pairing",
    "code_targets",
    "codebook_gradient",
    "codes_in_use",
    "collapsed",
    "column_targets",
    "cosine",
    "deviation",
    "entailment_loss",
    "false_captions",
    "follow_once",
    "forgotten",
    "gradient_of_logits",
    "graduate",
    "group_score",
    "hard_negative_weights",
    "info_nce",
    "itc_logits",
    "last_norm",
    "left_over",
    "log_sinkhorn",
    "looks_around",
    "lowest_loss",
    "mask_false_negatives",
    "mean_key_loss",
    "mixed_rows",
    "mixed_targets",
    "most_entropy",
    "near_hit",
    "no_gradient",
    "online_logsumexp",
    "own_gradient",
    "pairs_looked_at",
    "prototype_loss",
    "pulled_back",
    "push_rows",
    "queue_ages",
    "r_at_1",
    "ramp",
    "rank_answers",
    "repaired",
    "same_codeword",
    "same_strength",
    "sentence_of",
    "shared_parameters",
    "soft_share",
    "soft_words",
    "swap_lies",
    "targets_with_ids",
    "term_gradient",
    "tied_recall",
    "true_of",
    "two_stages",
    "unit_rows",
    "what_a_code_says",
    "who_wins",
    "word_map",
]
