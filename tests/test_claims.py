"""Claims: verdicts on planted effects, runs that are kept and gone on with, tables that are made from them."""

import copy
import json
import math
import re
from dataclasses import replace

import pytest
import torch

from vlnotes import claims, world
from vlnotes.__main__ import main as command
from vlnotes.claims import Claim, Study, judge
from vlnotes.text import encode
from vlnotes.train import train

calls = []


def planted(settings: dict, seed: int) -> dict:
    """A run without a training: the score is what the settings say, and a little that the seed says."""
    calls.append((settings["level"], seed))
    return {"score": settings["level"] + 0.01 * seed, "curve": [0.0, 1.0], "device": "cpu"}


STUDY = Study(
    "planted", planted, {"tiny": {"level": 0.5, "pictures": 1, "steps": 1}}, {"base": {}, "better": {"level": 0.6}}
)
CLAIM = Claim("Z1", "better is better", "+1", "planted", {"better": 1, "base": -1}, "score")


@pytest.fixture(autouse=True)
def forget():
    calls.clear()


@pytest.mark.parametrize(
    ("effects", "direction", "expected"),
    [
        ([9, 10, 11, 10, 9], "+", "holds"),
        ([-9, -10, -11, -10, -9], "+", "does not hold"),
        ([0.1, -0.2, 0.2, 0.0, 0.1], "+", "no difference"),
        ([9, -10, 11, -10, 9], "+", "undecided"),
        ([0.1, -0.2, 0.2, 0.0, 0.1], "=", "holds"),
        ([9, 10, 11, 10, 9], "=", "does not hold"),
        ([-9, -10, -11, -10, -9], "=", "does not hold"),
        ([9, -10, 11, -10, 9], "=", "undecided"),
        ([10], "+", "undecided"),
        ([], "+", "undecided"),
    ],
)
def test_planted_effects_get_their_verdict(effects, direction, expected):
    assert judge(effects, direction, margin=2).verdict == expected


def test_the_interval_is_students():
    from scipy.stats import ttest_1samp

    effects = [1.0, 2.5, 0.5, 3.0, 2.0]
    found = judge(effects)
    reference = ttest_1samp(effects, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert found.effect == pytest.approx(1.8)


def test_bad_effects_are_refused():
    with pytest.raises(ValueError, match="finite"):
        judge([1.0, math.nan])
    with pytest.raises(ValueError, match="direction"):
        judge([1.0, 2.0], "-")
    with pytest.raises(ValueError, match="margin"):
        judge([1.0, 2.0], margin=-1)


def test_runs_go_seed_by_seed_and_are_never_made_twice(tmp_path):
    assert claims.run([STUDY], folder=tmp_path, say=lambda line: None) == 0
    assert calls == [(level, seed) for seed in range(5) for level in (0.5, 0.6)]
    assert claims.run([STUDY], folder=tmp_path, say=lambda line: None) == 0
    assert len(calls) == 10
    row = json.loads(claims.run_file(STUDY, "better", 3, folder=tmp_path).read_text())
    assert row["settings"] == {"level": 0.6, "pictures": 1, "steps": 1}
    assert (row["arm"], row["seed"], row["scale"], row["device"]) == ("better", 3, "tiny", "cpu")
    assert row["scores"]["score"] == pytest.approx(0.63) and set(row["made_with"]) == {"vlnotes", "torch", "python"}


def test_changed_settings_make_new_runs(tmp_path):
    claims.run([STUDY], folder=tmp_path, say=lambda line: None)
    changed = Study("planted", planted, {"tiny": {"level": 0.7, "pictures": 1, "steps": 1}}, STUDY.arms)
    assert claims.run_file(changed, "base", 0, folder=tmp_path) != claims.run_file(STUDY, "base", 0, folder=tmp_path)
    # the arm that sets the level itself is made from the same settings as before
    assert claims.run_file(changed, "better", 0, folder=tmp_path) == claims.run_file(
        STUDY, "better", 0, folder=tmp_path
    )


def test_arms_of_equal_settings_share_their_runs(tmp_path):
    twice = Study("planted", planted, STUDY.common, {"base": {}, "again": {"level": 0.5}}, seeds=2)
    claims.run([twice], folder=tmp_path, say=lambda line: None)
    assert len(calls) == 2
    assert [(row["arm"], row["seed"]) for row in claims.rows(twice, folder=tmp_path)] == [
        *(("base", 0), ("base", 1)),
        *(("again", 0), ("again", 1)),
    ]


def test_shards_share_the_work_without_overlap(tmp_path):
    assert claims.run([STUDY], shard=(0, 3), folder=tmp_path, say=lambda line: None) == 0
    first = list(calls)
    claims.run([STUDY], shard=(1, 3), folder=tmp_path, say=lambda line: None)
    assert claims.run([STUDY], shard=(2, 3), folder=tmp_path, say=lambda line: None) == 0
    assert 1 <= len(first) < 10 and len(calls) == len(set(calls)) == 10


def test_minutes_stop_in_time_and_the_next_call_goes_on(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 20))  # every look at the clock is 20 seconds after the one before
    monkeypatch.setattr(claims.engine.time, "perf_counter", lambda: next(clock))
    said = []
    missing = claims.run([STUDY], minutes=2, folder=tmp_path, say=said.append)
    assert 0 < missing < 10 and len(calls) == 10 - missing
    assert "stopping" in said[-1]
    assert claims.run([STUDY], folder=tmp_path, say=said.append) == 0
    assert len(calls) == 10


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path):
    def failing(settings, seed):
        if settings["level"] == 0.6 and seed == 1:
            raise ValueError("the loss became nan at step 7")
        return planted(settings, seed)

    study = Study("planted", failing, STUDY.common, STUDY.arms)
    with pytest.raises(RuntimeError, match="planted, arm 'better', seed 1: the loss became nan"):
        claims.run([study], folder=tmp_path, say=lambda line: None)
    assert len(list(tmp_path.rglob("*.json"))) == 3 and not list(tmp_path.rglob("*.part"))


def test_a_planted_wrong_sign_is_reported_as_not_holding(tmp_path):
    claims.run([STUDY], folder=tmp_path, say=lambda line: None)
    right = claims.verdict(CLAIM, STUDY, folder=tmp_path)
    assert right.verdict == "holds" and right.effect == pytest.approx(10) and right.seeds == 5
    wrong = Claim("Z2", "worse is better", "+1", "planted", {"base": 1, "better": -1}, "score")
    assert claims.verdict(wrong, STUDY, folder=tmp_path).verdict == "does not hold"
    text = claims.claim_table([CLAIM, wrong], {"planted": STUDY}, folder=tmp_path)
    assert "| Z2 | worse is better | +1 | -10.0 (-10.0 to -10.0) | 5, tiny | **does not hold** |" in text


def test_the_comparison_is_paired_by_seed(tmp_path):
    claims.run([STUDY], shard=(0, 1), folder=tmp_path, say=lambda line: None)
    claims.run_file(STUDY, "base", 2, folder=tmp_path).unlink()
    found = claims.verdict(CLAIM, STUDY, folder=tmp_path)
    assert found.seeds == 4 and found.effect == pytest.approx(10)  # seed 2 is left out on both sides
    assert "only 4 seeds" in claims.claim_table([CLAIM], {"planted": STUDY}, folder=tmp_path)


def test_tables_name_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no arm 'worse'"):
        claims.verdict(Claim("Z", "", "", "planted", {"worse": 1}, "score"), STUDY, folder=tmp_path)
    claims.run([STUDY], folder=tmp_path, say=lambda line: None)
    with pytest.raises(ValueError, match="claim Z.*no score 'recall'"):
        claims.verdict(Claim("Z", "", "", "planted", {"base": 1}, "recall"), STUDY, folder=tmp_path)
    with pytest.raises(ValueError, match="no score 'recall'"):
        claims.arm_table(STUDY, ["recall"], folder=tmp_path)
    with pytest.raises(ValueError, match="scale"):
        STUDY.settings("base", "large")
    with pytest.raises(ValueError, match="there is no study"):
        claims.table("99.nothing")


def test_the_arm_table_has_mean_and_spread(tmp_path):
    claims.run([STUDY], folder=tmp_path, say=lambda line: None)
    text = claims.arm_table(STUDY, ["score"], folder=tmp_path)
    assert "52.0 +-  1.6" in text and "62.0 +-  1.6" in text
    assert text.endswith("scale tiny: 1 pictures, 1 steps")
    longer = replace(STUDY, arms={"base": {}, "longer": {"steps": 2}})
    assert claims.arm_table(longer, ["score"], folder=tmp_path).endswith("steps differ by arm")


def test_an_effect_that_is_no_sum_is_made_of_all_arms_of_a_seed(tmp_path):
    claims.run([STUDY], folder=tmp_path, say=lambda line: None)
    ratio = Claim("Z", "", "", "planted", {"base": 1, "better": 1}, "score", effect=lambda a: a["better"]["score"] / 2)
    sums = Claim("Z", "", "", "planted", {"better": 0.5}, "score")
    assert claims.verdict(ratio, STUDY, folder=tmp_path) == claims.verdict(sums, STUDY, folder=tmp_path)
    claims.run_file(STUDY, "base", 1, folder=tmp_path).unlink()  # an arm that it asks for
    assert claims.verdict(ratio, STUDY, folder=tmp_path).seeds == STUDY.seeds - 1


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_can_be_tried(claim):
    if not claim.study:
        assert claim.why
        return
    study = claims.STUDIES[claim.study]
    for arm in claim.contrast:
        study.settings(arm)
    differences = ("gain", "gain_both", "pointing_gain", "above_half", "nmi_gain", "plan_gain")  # within a run
    if claim.direction == "+" and claim.score not in differences:
        assert sum(claim.contrast.values()) == 0  # a comparison, not a level


@pytest.mark.parametrize("scale", claims.moco.STUDY.common)
def test_arms_are_what_their_names_say(scale):
    """At every scale: an arm called "batch 64" has batches of 64, "K = 16" a queue of 16, and so on."""
    words = {"K": "queue_size", "m": "momentum", "T": "temperature", "batch": "batch_size"}
    for arm in claims.moco.STUDY.arms:
        settings = claims.moco.STUDY.settings(arm, scale)
        for word, name in words.items():
            for value in re.findall(rf"\b{word} (?:= )?([\d.]+)", arm):
                assert settings[name] == float(value), (arm, name)
        for count in re.findall(r"([\d,]+) pictures", arm):
            assert settings["pictures"] == int(count.replace(",", ""))


def test_claim_ids_are_unique_and_moco_is_whole():
    ids = [claim.id for claim in claims.CLAIMS]
    assert len(ids) == len(set(ids))
    assert {f"M{number}" for number in range(1, 9)} <= set(ids)


@pytest.mark.parametrize("study", claims.STUDIES.values(), ids=lambda study: study.name)
def test_stored_runs_are_of_settings_that_exist(study):
    """A run that no arm asks for any more is dead weight, or its settings were changed without running it again."""
    known = {claims.run_file(study, arm, seed, scale) for arm in study.arms for seed in range(study.seeds)
             for scale in study.common}  # fmt: skip
    stored = set((claims.RUNS / study.name).glob("*.json"))
    assert stored and stored <= known


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mechanism": "bank", "queue_size": 16},
        {"mechanism": "end-to-end"},
        {"norm": "batch", "bn_groups": 4, "shuffle": False},
        {"steps": 0},
    ],
)
def test_a_run_of_moco_gives_every_score_that_the_claims_ask_for(settings):
    tiny = claims.moco.TINY | {"pictures": 64, "steps": 20, "batch_size": 16, "width": 64, "queue_size": 32} | settings
    found = claims.moco.run(tiny, seed=0)
    asked = {claim.score for claim in claims.CLAIMS if claim.study == "03.moco"} - (
        {"accuracy"} if not tiny["steps"] else set()
    )
    assert asked <= set(found)
    assert all(0 <= found[name] <= 1 for name in ("shape", "colour", "shape_knn", "colour_knn"))
    if tiny["steps"]:
        assert len(found["loss_curve"]) == 20 and found["loss"] > 0


def test_the_command_lists_and_prints(capsys):
    assert command(["claims", "list"]) == 0
    assert "03.moco: 5 seeds" in capsys.readouterr().out
    assert command(["claims", "table", "--study", "03.moco"]) == 0
    assert "| M2 |" in capsys.readouterr().out
    assert command(["claims", "run", "--shard", "2/2"]) == 1
    assert "--shard" in capsys.readouterr().err


def test_what_is_not_tried_says_why(tmp_path):
    text = claims.claim_table([claim for claim in claims.CLAIMS if not claim.study], {}, folder=tmp_path)
    assert "| M8 |" in text and "not tried: no detector" in text


def test_the_gates_are_counted_as_the_card_says():
    """Planted recalls: paper alone .8 and .1 elsewhere, joint .05 behind, each domain falls from .8 to .3."""
    from vlnotes import world

    stream = claims.domains.STREAM
    nowhere = dict.fromkeys(world.DOMAINS, 0.0)
    row = lambda arm, scores: {"arm": arm, "seed": 0, "scores": nowhere | scores}  # noqa: E731
    alone = [row(f"{d} alone", {e: 0.8 if d == e else 0.1 for e in stream}) for d in stream]
    joint = row("joint", dict.fromkeys(stream, 0.75))
    learnt = {f"{d}_curve": [0.8 if at == i else 0.3 for at in range(5)] for i, d in enumerate(stream)}
    sequential = row("sequential", {d: 0.8 if d == "harbour" else 0.3 for d in stream} | learnt)
    found = claims.domains.gates([*alone, joint, sequential])
    assert found["drop on neon"] == pytest.approx([70])
    assert found["joint behind single"] == pytest.approx([5])
    assert found["forgetting"] == pytest.approx([50])
    text = claims.domains.gate_tables([*alone, joint, sequential])
    assert "| forgetting | at least 20 | 50.0 | 50.0 | yes |" in text
    assert "| joint behind single | at most 10 | 5.0 | 5.0 | yes |" in text
    behind = row("joint", dict.fromkeys(stream, 0.5))
    assert "| joint behind single | at most 10 | 30.0 | 30.0 | no |" in claims.domains.gate_tables(
        [*alone, behind, sequential]
    )
    assert claims.domains.gates([*alone, joint]) == {}  # a seed that is not whole does not count


def test_a_run_over_two_phases_scores_every_domain():
    tiny = claims.domains.TINY | {"pictures": 40, "steps": 2, "batch_size": 16, "gallery": 20}
    found = claims.domains.run(tiny | {"phases": [["paper"], ["neon", "chalk"]]}, seed=0)
    from vlnotes import world

    assert set(world.DOMAINS) <= set(found)
    assert {name for name in found if name.endswith("_curve")} == {"paper_curve", "neon_curve", "chalk_curve"}
    assert len(found["paper_curve"]) == 2 and found["neon"] == pytest.approx(found["neon_curve"][-1], abs=1e-4)


def test_a_run_of_albef_scores_all_that_its_objectives_allow(monkeypatch):
    from vlnotes.claims import albef

    monkeypatch.setattr(albef, "GALLERY", 12)
    monkeypatch.setattr(albef, "TEST", 40)
    small = albef.TINY | {"pictures": 40, "steps": 2, "batch_size": 8, "queue_size": 16, "size": 32}
    whole = albef.run(small, 0)
    numbers = {name: value for name, value in whole.items() if isinstance(value, float)}
    assert {"itc", "rerank16", "gain", "everything", "itm_choice", "colour_gap", "pointing_gain"} <= numbers.keys()
    assert all(-1 <= value <= 1 for value in numbers.values())
    assert whole["gain"] == pytest.approx(whole["rerank16"] - whole["itc"])
    assert whole["gain_both"] == pytest.approx(whole["both16"] - whole["itc"])
    assert len(whole["loss_curve"]) == 2
    blind = albef.run(small | albef.STUDY.arms["no ITC, towers not aligned"], 0)
    assert "itc" not in blind and "itc_curve" not in blind and "everything" in blind
    assert (
        albef._pairs("paper", 40, 2, ("full",), 32, 0.3, 0.1).captions
        != albef._pairs("paper", 40, 2, ("full",), 32, 0.0, 0.0).captions
    )
    assert all(len(scene.visible) == 2 for scene in albef._scenes("paper", 40, "train", 2))


def test_a_run_of_retrieval_looks_before_and_after_tuning():
    from vlnotes.claims import retrieval

    small = {"pictures": 24, "steps": 2, "albef_steps": 2, "batch_size": 12, "albef_batch": 6, "tuning_pictures": 24}
    tiny = retrieval.TINY | small | {"tuning_steps": 2, "gallery": 12, "k": 3, "queue_size": 12}
    found = retrieval.run(tiny, 0)
    assert all(0 <= value <= 1 for value in found.values() if isinstance(value, float))
    for who in ("clip", "itc", "albef"):
        for stage in ("zero", "tuned"):
            six = [found[f"{who} {stage} {way}@{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
            assert found[f"{who} {stage}"] == pytest.approx(sum(six) / 6) and six[:3] == sorted(six[:3])
    # what is not among the first k keeps its order: at k = 3 recall at 5 and 10 is that of the first stage
    assert (
        found["albef zero i2t@5"] == found["itc zero i2t@5"]
        and found["albef tuned t2i@10"] == found["itc tuned t2i@10"]
    )
    assert set(retrieval.TINY["domains"]).isdisjoint({retrieval.TINY["unseen"]})


@pytest.fixture
def small_weights(monkeypatch):
    from vlnotes.albef import ALBEF
    from vlnotes.claims import downstream
    from vlnotes.clip import CLIP

    tokenizer = downstream.load("clip-paper")[1]
    made = {
        "clip-paper": CLIP.tiny(len(tokenizer), seed=3),
        "albef-paper": ALBEF.tiny(len(tokenizer), layers=1, size=32, queue_size=0, seed=4),
    }
    monkeypatch.setattr(downstream, "load", lambda name: (made[name].eval(), tokenizer))
    downstream._drawn.cache_clear()
    yield made
    downstream._drawn.cache_clear()


@pytest.mark.parametrize("arm", ["decoder", "classifier", "two pictures", "entailment"])
def test_a_run_of_downstream_tries_each_head(small_weights, arm):
    from vlnotes.claims import downstream

    small = {"pictures": 60, "tested": 60, "steps": 2, "assignment_steps": 1, "batch_size": 4, "size": 32}
    settings = downstream.STUDY.settings(f"{arm}, albef-paper") | small
    settings["assignment_steps"] *= arm == "two pictures"
    found = downstream.run(settings, 0)
    kinds = {name.removeprefix("accuracy ") for name in found if name.startswith("accuracy ")}
    known = {"two pictures": set(settings["kinds"]), "entailment": {"count", "rel"}}.get(arm, set(world.QUESTION_KINDS))
    assert kinds == known and len(found["loss_curve"]) == 2
    assert all(0 <= found[name] <= 1 for name in ("accuracy", *(f"accuracy {kind}" for kind in kinds)))
    assert found == downstream.run(settings, 0)


def test_the_three_starts_of_downstream(small_weights):
    from vlnotes.claims import downstream

    trained, towers, fresh = (downstream.begin(start, seed=5)[0].student for start in ("albef", "towers", "random"))
    assert trained is small_weights["albef-paper"].student
    own, given = towers.image_projection.weight, small_weights["clip-paper"].image_projection.weight
    assert torch.equal(own, given) and not torch.equal(fresh.image_projection.weight, given)
    assert torch.equal(towers.door.weight, fresh.door.weight)
    assert not torch.equal(towers.door.weight, trained.door.weight)
    with pytest.raises(ValueError, match="albef, towers, random"):
        downstream.begin("half")


@pytest.mark.parametrize("task", ["questions", "statements", "hypotheses", "assignments"])
def test_tasks_carry_the_right_label(task):
    from vlnotes.claims import downstream

    tokenizer = downstream.load("clip-paper")[1]
    asked, kinds = downstream.tasks(task, tokenizer, 60, "val", size=32)
    assert len(kinds) == len(asked)
    scenes = world.World("paper").scenes(60, "val", neighbours=False)
    if task == "questions":
        said = world.questions(scenes)
        assert [world.answers("paper")[label] for label in asked.label] == [one.answer for one in said]
    elif task == "statements":
        said = world.statements(scenes, 60)
        assert [bool(label) for label in asked.label] == [one.answer for one in said]
    elif task == "hypotheses":
        said = world.hypotheses(scenes)
        assert [world.LABELS[label] for label in asked.label] == [one.label for one in said]
        assert torch.equal(asked.images[asked.first], world.draw([one.scene for one in said], 32))
    else:
        said = world.assignments(world.pairs(scenes, size=32), 60)
        assert asked.label.tolist() == [one.answer for one in said]
    if task in ("statements", "assignments"):
        assert (asked.first.tolist(), asked.second.tolist()) == ([o.left for o in said], [o.right for o in said])
    assert asked.tokens["input_ids"].tolist() == encode(tokenizer, [one.text for one in said], 40)["input_ids"].tolist()


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({}, ["mlm"] * 2),
        ({"objective": "itm"}, ["itm"] * 2),
        ({"objective": "itm", "words_first": 3}, ["mlm"] * 3 + ["itm"] * 2),
        ({"objective": "itm", "words_first": 1, "mixed_last": 4}, ["mlm"] + ["itm"] * 6),
        ({"objective": "itc", "mixed_last": 1}, ["itc"] * 3),
    ],
)
def test_a_run_of_relations_asks_for_them_alone(small_weights, monkeypatch, change, asked):
    from vlnotes.claims import relations

    class Told(relations.Asked):
        def forward(self, batch):
            done.append(self.objective)
            return super().forward(batch)

    done = []
    tokenizer = relations.load("clip-paper")[1]
    monkeypatch.setattr(relations, "load", lambda name: (copy.deepcopy(small_weights[name]), tokenizer))
    monkeypatch.setattr(relations, "Asked", Told)
    small = {"pictures": 20, "steps": 2, "batch_size": 4, "size": 32, "tested": 20}
    found = relations.run(relations.TINY | small | change, 0)
    scores = {"hidden", "hidden_shuffled", "flip", "flip_group", "colour", "swap", "textures", "shapes_group"}
    assert scores < found.keys() and len(found["loss_curve"]) == change.get("mixed_last", 2) and done == asked
    assert found == relations.run(relations.TINY | small | change, 0)
    with pytest.raises(ValueError, match="mlm, itm"):
        relations.run(relations.TINY | small | {"objective": "both"}, 0)


def test_relations_hide_the_telling_words_and_freeze_the_towers(small_weights):
    from vlnotes.claims import relations

    tokenizer = relations.load("clip-paper")[1]
    albef, asked = copy.deepcopy(small_weights["albef-paper"]), {}
    ids = encode(tokenizer, ["a ring to the left of a drop", "a ring above a drop"], 12)
    telling = torch.tensor(tokenizer.convert_tokens_to_ids(["left", "above"]))
    model = relations.Asked(albef, telling, "mlm")

    def hidden_words(input_ids, mask, seen, labels):
        asked.update(ids=input_ids, labels=labels)
        return torch.zeros(int((labels != -100).sum()), len(tokenizer), requires_grad=True)

    albef.student.hidden_words = hidden_words
    loss = model({"image": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), **ids})["loss"]
    assert float(loss.detach()) == pytest.approx(math.log(len(tokenizer)), rel=1e-5)
    told = asked["labels"] != -100
    assert tokenizer.convert_ids_to_tokens(asked["labels"][told]) == ["left", "above"]
    assert (asked["ids"][told] == tokenizer.mask_token_id).all() and (asked["ids"] != ids["input_ids"]).equal(told)
    towers = {name.split(".")[2] for name, p in model.named_parameters() if not p.requires_grad and "student" in name}
    assert towers == {"image_encoder", "text_encoder", "image_projection", "text_projection"}
    with pytest.raises(ValueError, match="mlm, itm"):
        relations.Asked(albef, telling, "both")


def test_contrast_over_couples_moves_the_towers_and_knows_who_belongs_to_whom(small_weights):
    from vlnotes.claims import relations

    tokenizer = relations.load("clip-paper")[1]
    albef = copy.deepcopy(small_weights["albef-paper"])
    ids = encode(
        tokenizer, ["a ring to the left of a drop", "two large blue houses", "a green heart in the desert"], 12
    )
    image = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    albef.temperature.data.fill_(0.001)  # small random towers see little difference
    model = relations.Asked(albef, torch.tensor([5]), "itc").eval()
    loss = model({"image": image, **ids})["loss"]
    features = albef.image_features(image), albef.text_features(**ids)
    logits = features[0] @ features[1].T / albef.temperature
    own = torch.arange(3)
    expected = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
    wrong = torch.nn.functional.cross_entropy(logits.flip(1), own)
    assert abs(float(wrong - expected)) > 1e-3  # or the pairing would not show
    torch.testing.assert_close(loss, expected)
    loss.backward()
    moved = [name.split(".") for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    towers = {"image_encoder", "text_encoder", "image_projection", "text_projection"}
    assert {name[2] for name in moved if name[1] == "student"} == towers


def test_mixed_batches_are_half_flips_and_half_other_edits():
    from vlnotes.claims import relations

    tokenizer = relations.load("clip-paper")[1]
    settings = relations.TINY | {"pictures": 16, "batch_size": 8, "size": 32}
    batch = relations._mixed(settings, tokenizer, 0)(0)
    assert batch["image"].shape == (8, 3, 32, 32)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (8, batch["attention_mask"].sum(1).max())
    flips, others = (relations._couples("paper", 16, 32), relations._edited("paper", 16, 32))
    for rows, data in ((batch["image"][:4], flips), (batch["image"][4:], others)):
        at = [int((data.images == row).flatten(1).all(1).nonzero()[0, 0]) for row in rows]
        assert all(a % 2 == 0 and b == a + 1 for a, b in zip(at[::2], at[1::2], strict=True))
    assert not any(
        world.edits(one).get("flip_relation") == two
        for one, two in zip(others.scenes[::2], others.scenes[1::2], strict=True)
    )
    told = [tokenizer.decode(row, skip_special_tokens=True) for row in batch["input_ids"][:4]]
    assert set(told) <= {
        tokenizer.decode(row, skip_special_tokens=True) for row in encode(tokenizer, flips.texts, 40)["input_ids"]
    }


def test_flipped_couples_stand_side_by_side():
    from vlnotes.claims import relations

    data = relations._couples("paper", 12, 32)
    for one, other in zip(data.scenes[::2], data.scenes[1::2], strict=True):
        assert world.edits(one)["flip_relation"] == other
    assert all(caption.kind == "rel" for caption in data.captions)


def test_a_run_of_codis_gives_every_score_that_its_claims_ask_for(monkeypatch):
    from vlnotes.claims import codis

    for name, count in (("GALLERY", 12), ("LOOKED", 8), ("PROBED", 60)):
        monkeypatch.setattr(codis, name, count)
    small = codis.TINY | {"pictures": 24, "steps": 2, "batch_size": 8, "queue_size": 16, "codewords": 4}
    found = codis.run(small, 0)
    asked = {claim.score for claim in codis.CLAIMS if claim.study} - {"rerank16"}
    assert asked <= found.keys()
    assert all(0 <= found[name] <= 1 for name in ("r1", "r10", "shape", "agreement", "purity", "nmi", "spread"))
    assert found["r1"] == pytest.approx((found["i2t@1"] + found["t2i@1"]) / 2)
    assert found["nmi_gain"] == pytest.approx(found["nmi"] - found["nmi_kmeans"])
    assert found["plan_gain"] == pytest.approx(found["nmi_plan"] - found["nmi_kmeans"])
    assert found["above_half"] == pytest.approx(found["perplexity"] / 4 - 0.5)
    curves = ("loss", "ica", "transport", "text_to_prototype", "image_to_prototype", "temperature")
    assert {f"{name}_curve" for name in curves} <= found.keys() and len(found["loss_curve"]) == 2
    again = codis.run(small | {"objectives": ["itc", "itm"], "close_ups": False}, 0)
    assert {"rerank16", "itc_hard"} <= again.keys() and not {"nmi", "ica_curve"} & again.keys()


def test_a_plan_shares_close_ups_out_where_the_nearest_codeword_would_take_all():
    from vlnotes.claims import codis

    class Codebook:  # two codewords; all close-ups lie nearer to the first, and still go by what they show
        codebook = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # brought to length 1 by the score

        def codes(self, features):
            return (features @ torch.eye(2)).argmax(1)

    angles = torch.tensor([0.1] * 8 + [0.7] * 8)
    features, labels = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0] * 8 + [1] * 8)
    found = codis._codes(Codebook(), features, features, features, labels, 0)
    assert found["nmi"] == pytest.approx(0, abs=1e-6) and found["nmi_plan"] == pytest.approx(1)
    assert found["nmi_gain"] == pytest.approx(-1) and found["plan_gain"] == pytest.approx(0)


def test_codis_beside_albef_is_asked_the_same(small_weights, monkeypatch):
    from vlnotes.claims import against, downstream

    tokenizer = downstream.load("clip-paper")[1]
    monkeypatch.setattr(against, "load", lambda name: (copy.deepcopy(small_weights[name]), tokenizer))
    learnt, heads = [], []
    monkeypatch.setattr(against, "train", lambda model, *a, **k: learnt.append(model) or train(model, *a, **k))
    carried = downstream.carried
    monkeypatch.setattr(
        downstream, "carried", lambda model, *a: heads.append(copy.deepcopy(model)) or carried(model, *a)
    )
    small = {"domains": ["paper", "knit"], "pictures": 20, "size": 32, "batch_size": 4, "steps": 2, "queue_size": 8}
    small |= {"codewords": 4, "tuning_pictures": 20, "tuning_steps": 1, "gallery": 8, "k": 2}
    small |= {"head_pictures": 40, "head_steps": 1, "head_batch": 4, "tested": 40}
    for arm, aligned in (("ALBEF", ("itc",)), ("CODIS", ("ica", "code"))):
        learnt.clear(), heads.clear()
        found = against.run(against.STUDY.settings(arm) | small, 0)
        assert {claim.score for claim in against.CLAIMS} <= found.keys()
        assert all(0 <= share <= 1 for name, share in found.items() if name != "device")
        assert found["downstream"] == pytest.approx(sum(found[name] for name in against.HEADS) / 3)
        for stage in ("zero", "tuned"):
            assert found[f"{stage} r1"] == pytest.approx((found[f"{stage} i2t@1"] + found[f"{stage} t2i@1"]) / 2)
        first, second = learnt
        assert type(first).__name__ == arm and set(first.objectives) == {*aligned, "itm", "mlm"}
        assert set(second.objectives) == {*aligned, "itm"} and second.same_ids and not first.same_ids
        for model in heads:  # every head starts from what was learnt, before any other head or the fine-tuning
            for name, value in first.state_dict().items():
                assert torch.equal(model.state_dict()[name], value), name
        assert len(heads) == 3
        assert found == against.run(against.STUDY.settings(arm) | small, 0)


def test_the_arms_of_codis_are_what_their_names_say():
    from vlnotes.claims import codis

    arms = codis.STUDY.arms
    built = {}
    for arm, changes in arms.items():
        assert changes.keys() <= codis.TINY.keys(), arm
        settings = codis.STUDY.settings(arm)
        model, _ = codis.build(settings, 0)
        built[arm] = model
        first = {"a": "itc", "b": "ica"}.get(arm[0])
        assert first is None or first in model.objectives
        assert ("codebook" in arm or "ITM" in arm) == ("code" in model.objectives)
        for count in re.findall(r"(\d+) codewords", arm):
            assert len(model.codebook) == int(count)
        for factor in re.findall(r"weight x ([\d.]+)", arm):
            assert model.code_weight == pytest.approx(codis.TINY["code_weight"] * float(factor))
    assert len({str(sorted(changes.items())) for changes in arms.values()}) == len(arms)  # no arm twice
    assert [built[f"b + codebook ({who})"].plan_from for who in ("student", "teacher")] == ["student", "teacher"]
    assert {name: model.assignment for name, model in built.items() if model.assignment != "ipot"} == {
        "a + codebook, softmax": "softmax",
        "a + codebook, k-means": "kmeans",
        "a + codebook, Sinkhorn as SwAV": "sinkhorn",
    }
    assert {name for name, model in built.items() if not model.second_view} == {"a: ITC (ALBEF)", "b, one view"}
    assert {name for name, model in built.items() if model.momentum == 0} == {"b + codebook, no momentum"}
    assert {name for name, model in built.items() if model.same_code} == {"ITM, negatives of the same codeword"}
    assert {name for name, model in built.items() if model.pairing == "same"} == {
        f"{row} + codebook, same pairing" for row in "ab"
    }


def test_the_claims_of_codis_are_comparisons_of_its_arms():
    from vlnotes.claims import against, codis

    told = [*codis.CLAIMS, *against.CLAIMS]
    ids = [claim.id for claim in told]
    assert len(ids) == len(set(ids)) and {f"C{number}" for number in range(1, 8)} <= set(ids)
    studies = {study.name: study for study in (codis.STUDY, codis.PLANS, against.STUDY)}
    for arm in codis.PLANS.arms:  # the very runs of the ablation, asked once more
        assert codis.PLANS.settings(arm) == codis.STUDY.settings(arm) and codis.PLANS.run is codis.STUDY.run
    for claim in told:
        assert claim.why if not claim.study else claim.contrast.keys() <= studies[claim.study].arms.keys()
        if claim.score not in ("above_half", "nmi_gain", "plan_gain"):  # within a run
            assert sum(claim.contrast.values()) == 0


@pytest.mark.parametrize("arm", ["CLIP", "PSD", "PSD, slow teacher", "CLIP, labels smoothed", "the summary's version"])
def test_a_run_of_psd_gives_every_score_that_its_claims_ask_for(monkeypatch, arm):
    from vlnotes.claims import psd

    for name, count in (("GALLERY", 12), ("PROBED", 60), ("NAMED", 30)):
        monkeypatch.setattr(psd, name, count)
    small = psd.STUDY.settings(arm) | {"pictures": 24, "steps": 2, "batch_size": 8}
    found = psd.run(small, 0)
    assert {claim.score for claim in psd.CLAIMS} <= found.keys() and len(found["loss_curve"]) == 2
    shares = ("r1", "r10", "zero", "zero_shape", "zero_colour", "shape", "colour", "auroc")
    assert all(0 <= found[name] <= 1 for name in shares)
    assert found == psd.run(small, 0)
    assert "auroc" not in psd.run(small | {"mismatch": 0.0}, 0)


def test_psd_tells_clean_from_wrong_pairs_the_right_way_round(monkeypatch):
    from vlnotes.claims import psd

    data = psd._noisy("paper", 40, 32, 0.4)
    wrong = torch.tensor([caption.noise is not None for caption in data.captions])
    assert 5 < int(wrong.sum()) < 35
    pictures = torch.eye(40)
    texts = torch.where(wrong[:, None], pictures.roll(1, 0), pictures)  # a wrong caption speaks of another picture
    monkeypatch.setattr(psd, "encode_images", lambda model, images: pictures[: len(images)])
    monkeypatch.setattr(psd, "encode_texts", lambda model, tokens: texts[: len(tokens["input_ids"])])
    settings = psd.TINY | {"pictures": 40}
    tokenizer = psd.load("clip-paper")[1]
    assert psd._told_apart(None, tokenizer, settings) == {"auroc": 1.0}
    texts = -texts
    assert psd._told_apart(None, tokenizer, settings) == {"auroc": 0.0}


def test_zero_shot_labels_are_the_names_of_the_prompts():
    from vlnotes.claims import psd

    scene = world.World("paper").single(1, "test")[0]
    thing = scene.objects[0]
    told = {"colour-shape": f"{thing.colour} {thing.shape}", "shape": thing.shape, "colour": thing.colour}
    for of, name in told.items():
        assert psd._named(scene, of) == name and name in world.prompts("paper", of)


def test_every_shift_changes_one_thing():
    from vlnotes.claims import psd
    from vlnotes.world.scenes import HELD_OUT

    pictures, scenes = psd.shifted("paper", "", 32, 40)
    assert not any((s.objects[0].colour, s.objects[0].shape) in HELD_OUT for s in scenes)
    for shift in psd.SHIFTS:
        moved, others = psd.shifted("paper", shift, 32, 40)
        assert moved.shape == pictures.shape and len(others) == 40
        names = {psd._named(scene, "colour-shape") for scene in others}
        assert names <= world.prompts("paper").keys()
        if shift in ("noise", "blur"):
            assert others == scenes and 0.01 < float((moved - pictures / 255).abs().mean()) < 0.2
            assert 0 <= float(moved.min()) and float(moved.max()) <= 1
        elif shift == "unseen pairs":
            assert all((s.objects[0].colour, s.objects[0].shape) in HELD_OUT for s in others)
        else:
            assert {scene.domain for scene in others} == {shift}
    with pytest.raises(ValueError, match="shift is 'snow'"):
        psd.shifted("paper", "snow", 32, 40)


def test_robustness_is_what_lies_beyond_the_line_of_ordinary_clips():
    from vlnotes.claims import psd

    assert len(psd.TEST_BED) >= 12 and not any("smoothed" in arm or "PSD" in arm for arm in psd.TEST_BED)
    sizes = {psd.STUDY.settings(arm)["pictures"] for arm in psd.TEST_BED}
    assert max(sizes) / min(sizes) == 32
    arms = {}
    for at, arm in enumerate((*psd.TEST_BED, "PSD")):
        usual = 0.1 + 0.05 * at
        moved = 1 / (1 + math.exp(-(0.9 * math.log(usual / (1 - usual)) - 0.4)))
        arms[arm] = {"zero": usual} | {f"zero, {shift}": moved for shift in psd.SHIFTS}
    for shift, more in zip(psd.SHIFTS, (0.1, 0.0, 0.0, 0.05, -0.05), strict=True):
        arms["PSD"][f"zero, {shift}"] += more
        assert psd.robustness(arms, shift).gain.tolist() == pytest.approx([more, 0])
    by_id = {claim.id: claim for claim in psd.CLAIMS}
    assert by_id["P7"].effect(arms) == pytest.approx(0.02) and by_id["P7b"].effect(arms) == pytest.approx(0.02)
    assert by_id["P7"].contrast.keys() == arms.keys()


def test_the_slope_of_psds_gain_is_that_of_a_line():
    from vlnotes.claims import psd

    weights = next(claim.contrast for claim in psd.CLAIMS if claim.id == "P4")
    assert weights.keys() <= psd.STUDY.arms.keys()
    for gain, expected in ((lambda size: 3.0, 0.0), (lambda size: 0.1 * math.log2(size), 0.1)):
        total = 0.0
        for arm, weight in weights.items():
            size = psd.STUDY.settings(arm)["pictures"]
            both = 0.5 + 0.07 * math.log2(size)  # what both gain from more data is no gain of PSD
            total += weight * (both + (gain(size) if arm.startswith("PSD") else 0.0))
        assert total == pytest.approx(expected, abs=1e-12)
    assert max(psd._SIZES) / min(psd._SIZES) == 32


@pytest.mark.parametrize("arm", ["CLIP", "nCLIP", "xCLIP", "nCLIP, last BatchNorm"])
def test_a_run_of_xclip_gives_every_score_that_its_claims_ask_for(monkeypatch, arm):
    from vlnotes.claims import psd, xclip

    for of, name, count in ((psd, "GALLERY", 12), (psd, "PROBED", 60), (psd, "NAMED", 30), (xclip, "PROBED", 60)):
        monkeypatch.setattr(of, name, count)
    xclip._asked.cache_clear()
    small = xclip.STUDY.settings(arm) | {"pictures": 24, "steps": 2, "batch_size": 8, "codewords": 6}
    found = xclip.run(small, 0)
    asked = {claim.score for claim in xclip.CLAIMS} - ({"spread"} if arm == "CLIP" else set())
    assert asked <= found.keys() and "auroc" not in found
    assert all(0 <= found[name] <= 1 for name in ("r1", "zero", "shape", "nmi", "nmi_place"))
    assert ("spread" in found) == ("nmi_kmeans" in found) == (arm != "CLIP")
    if arm != "CLIP":
        assert found["spread"] == pytest.approx(found["perplexity"] / 6) and 0 <= found["sure"] <= 1
    assert found == xclip.run(small, 0)
    if arm != "CLIP":  # more codes than pictures: no k-means to compare with, and no failure
        many = xclip.run(small | {"codewords": 80}, 0)
        assert "nmi_kmeans" in found and found.keys() - many.keys() == {"nmi_kmeans"}
    xclip._asked.cache_clear()


def test_the_arms_of_xclip_are_what_their_names_say():
    from vlnotes.claims import xclip

    for arm in xclip.STUDY.arms:
        settings = xclip.STUDY.settings(arm)
        model, _ = xclip.build(settings, 0)
        assert type(model).__name__ == arm.split(",")[0].replace("nCLIP", "NCLIP").replace("xCLIP", "XCLIP")
        if hasattr(model, "heads"):
            weights = model.heads.eh_weight, model.heads.he_weight
            told = {"neither term": (0, 0), "EH alone": (1, 0), "both terms": (1, 2), "HE x 0.5": (0, 1)}
            told["last BatchNorm"] = (0.5, 1)
            assert weights == told.get(arm.split(", ")[-1], (0, 2)), arm
            assert (model.heads.image_head.norm == "batch") == ("BatchNorm" in arm)
        for number in re.findall(r"([\d,]+) codes", arm):
            assert settings["codewords"] == int(number.replace(",", ""))
        for number in re.findall(r"batch (\d+)", arm):
            assert settings["batch_size"] == int(number)
    ids = [claim.id for claim in xclip.CLAIMS]
    assert len(ids) == len(set(ids)) and {f"N{k}" for k in range(1, 9)} <= set(ids)
    for claim in xclip.CLAIMS:
        assert claim.contrast.keys() <= xclip.STUDY.arms.keys() and sum(claim.contrast.values()) == 0
    with pytest.raises(ValueError, match="method is 'moco'; expected clip, nclip or xclip"):
        xclip.build(xclip.TINY | {"method": "moco"}, 0)


@pytest.fixture
def small_streams(small_weights, monkeypatch):
    from vlnotes.claims import streams

    tokenizer = streams.load("clip-paper")[1]
    monkeypatch.setattr(streams, "load", lambda name: (copy.deepcopy(small_weights[name]), tokenizer))
    for name, count in (("GALLERY", 10), ("LOOKED", 520), ("PROBED", 60)):
        monkeypatch.setattr(streams, name, count)
    small = {"pictures": 24, "steps": 2, "first_steps": 2, "batch_size": 8}
    return streams, lambda stream, arm: streams.STUDIES[stream].settings(arm) | small


@pytest.mark.parametrize("arm", ["plain", "Mod-X, weight 1", "EWC", "replay", "joint", "from scratch", "MoCo"])
def test_a_stream_gives_every_score_that_its_claims_ask_for(small_streams, arm):
    streams, settings = small_streams
    found = streams.run(settings("domains", arm), 0)
    asked = {claim.score for claim in streams.CLAIMS if arm in claim.contrast}
    assert asked <= found.keys()
    if arm == "MoCo":
        assert len(found["shape_curve"]) == 6
        assert found["forgot_shape"] == pytest.approx(found["shape_curve"][0] - found["shape_curve"][-1])
        return
    matrix = found["matrix"]
    assert len(matrix) == (2 if arm == "joint" else 6) and all(len(row) == 6 for row in matrix)
    assert found["forgot"] == pytest.approx(matrix[0][0] - matrix[-1][0])
    just = matrix[-1][1:] if arm == "joint" else [matrix[at][at] for at in range(1, 6)]
    assert found["learnt"] == pytest.approx(sum(just) / 5) and found["end"] == pytest.approx(sum(matrix[-1][1:]) / 5)
    assert ("forgetting" in found) == (arm != "joint")
    assert found["gap"] == pytest.approx(found["forgot"] - found["forgot_shape"])
    assert found["average"] == pytest.approx((found["first"] + 5 * found["end"]) / 6)


def test_a_stream_is_the_same_for_the_same_seed(small_streams):
    streams, settings = small_streams
    assert streams.run(settings("pieces", "replay"), 1) == streams.run(settings("pieces", "replay"), 1)


@pytest.mark.parametrize("stream", ["domains", "pieces", "shapes", "far"])
def test_a_stream_has_five_phases_and_a_test_for_each(small_streams, stream):
    streams, settings = small_streams
    learnt, tests = streams.phases(settings(stream, "plain") | {"pictures": 60})
    assert len(learnt) == len(tests) == 5 and len({part.name for part in learnt}) == 5
    shown = {id(scene) for part in learnt for scene in part.scenes}
    assert len(shown) == sum(len(part.scenes) for part in learnt)  # nothing is learnt twice
    for part, test in zip(learnt, tests, strict=True):
        assert {s.domain for s in part.scenes} == {s.domain for s in test.scenes}
        assert len(part.images) == len(part.captions) == len(part.scenes) and len(test.images) >= 4
        if stream == "shapes":
            kinds = {scene.objects[0].shape for scene in part.scenes}
            assert len(kinds) == 2 and kinds == {scene.objects[0].shape for scene in test.scenes}
    with pytest.raises(ValueError, match="stream is 'rivers'"):
        streams.phases(settings(stream, "plain") | {"stream": "rivers"})


def test_every_arm_of_a_stream_begins_with_what_its_name_says(small_streams):
    streams, settings = small_streams
    shipped = streams.load("clip-paper")[0].state_dict()
    for arm in streams.STUDIES["domains"].arms:
        model = streams.begin(settings("domains", arm), 0)
        if arm == "MoCo":
            continue
        weights = model.current.state_dict()
        assert all(weights[name].equal(shipped[name]) for name in shipped) == (arm != "from scratch")
        assert isinstance(model, streams.ModX) == arm.startswith("Mod-X")
    with pytest.raises(ValueError, match="method is 'hope'"):
        streams.begin(settings("domains", "plain") | {"method": "hope"}, 0)


def test_the_old_model_of_a_stream_is_that_of_the_phase_before(small_streams, monkeypatch):
    streams, settings = small_streams
    old = []

    class Told(streams.ModX):
        def start_phase(self, seen=()):
            super().start_phase(seen)
            same = zip(self.old.state_dict().values(), self.current.state_dict().values(), strict=True)
            assert all(one.equal(other) for one, other in same)
            old.append(int(self.phase))

    monkeypatch.setitem(streams.METHODS, "modx", Told)
    streams.run(settings("domains", "Mod-X, weight 1"), 0)
    assert old == [1, 2, 3, 4, 5]


def test_the_claims_of_streams_are_about_their_arms():
    from vlnotes.claims import streams

    studies = {study.name: study for study in streams.STUDIES.values()}
    ids = [claim.id for claim in streams.CLAIMS]
    assert len(ids) == len(set(ids)) and {f"X{k}" for k in range(1, 9)} <= set(ids)
    for claim in streams.CLAIMS:
        assert claim.contrast.keys() <= studies[claim.study].arms.keys()
        within = claim.score in ("forgot", "turned", "gap")
        assert sum(claim.contrast.values()) == (1 if within else 0)
    for arm, changes in streams.STUDIES["domains"].arms.items():
        for weight in re.findall(r"weight ([\d.]+)$", arm):
            assert changes["options"]["weight"] == float(weight)


@pytest.mark.parametrize("method", ["clip", "psd", "nclip", "xclip"])
def test_a_run_of_the_methods_asks_every_task_in_every_domain(monkeypatch, method):
    from vlnotes.claims import methods

    monkeypatch.setattr(methods, "GALLERY", 12)
    monkeypatch.setattr(methods, "NAMED", 60)
    small = methods.TINY | {"method": method, "pictures": 16, "steps": 2, "batch_size": 8, "codewords": 4}
    found = methods.run(small | {"domains": ["paper", "knit"]}, 0)
    tasks = {"zero", "zero_shape", "zero_colour", "r1", "strict r1"}
    domains = ("paper", "knit", "pixel")
    assert {f"{domain} {task}" for domain in domains for task in tasks} | tasks < found.keys()
    assert {f"{tower}_{factor}" for tower in ("image", "text") for factor in methods.FACTORS} < found.keys()
    assert found["r1"] == pytest.approx((found["paper r1"] + found["knit r1"]) / 2)
    assert all(-1 <= value <= 1 for name, value in found.items() if name != "device")
    with pytest.raises(ValueError, match="clip, psd, nclip, xclip"):
        methods.build(small | {"method": "siglip"}, 0)


def test_loss_curves_are_means_of_equal_parts():
    import pandas as pd

    from vlnotes.claims.engine import loss_curves

    history = pd.DataFrame({"step": range(6), "loss": [1.0, 3, 5, 7, 9, 11], "other": [0.0] * 6})
    told = loss_curves(history, "loss", "missing", points=3)
    assert told == {"loss_curve": [2.0, 6.0, 10.0]}
    assert loss_curves(history, "loss")["loss_curve"] == history["loss"].tolist()
