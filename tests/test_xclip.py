"""nCLIP and xCLIP: every part against loops in float64, collapse in closed form, two processes, the modules by hand."""

import copy
import math
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_albef import dice
from test_clip import make_batch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vlnotes.clip import CLIP, encode_images, encode_texts
from vlnotes.contrastive import clip_loss
from vlnotes.metrics import recall_from_features
from vlnotes.xclip import (
    NCLIP,
    NORMS,
    SCORES,
    XCLIP,
    CodeHead,
    CodeHeads,
    distribution_scores,
    mean_distribution,
    nclip_loss,
    uniform_penalty,
)

WEIGHTS = {"eh_weight": 0.5, "he_weight": 1.5}


def logits(rows=5, codes=4, seed=0, scale=2.0, dtype=torch.float64):
    return (scale * torch.randn(rows, codes, generator=dice(seed), dtype=torch.float64)).to(dtype)


def shares(rows):
    """Softmax of every row, as lists of floats."""
    powers = [[math.exp(float(value)) for value in row] for row in rows]
    return [[value / sum(row) for value in row] for row in powers]


def entropy(target, prediction=None):
    prediction = target if prediction is None else prediction
    return -sum(t * math.log(p) for t, p in zip(target, prediction, strict=True))


def naive_nclip(x, y):
    """cross_entropy, mean_entropy, entropy_of_mean, in loops."""
    p, q = shares(x), shares(y)
    rows, codes = len(p), len(p[0])
    cross = even = 0.0
    for i in range(rows):
        cross += (entropy(p[i], q[i]) + entropy(q[i], p[i])) / (2 * rows)
        even += (entropy(p[i]) + entropy(q[i])) / (2 * rows)
    means = [[sum(row[c] for row in one) / rows for c in range(codes)] for one in (p, q)]
    return cross, even, (entropy(means[0]) + entropy(means[1])) / 2


# ---------------------------------------------------------------------------------------------- the loss


def test_the_parts_are_the_loops_and_the_total_their_weighted_sum():
    x, y = logits(), logits(seed=1)
    found = nclip_loss(x, y, **WEIGHTS)
    cross, even, mean = naive_nclip(x, y)
    assert found._fields == ("total", "cross_entropy", "mean_entropy", "entropy_of_mean")
    assert [float(part) for part in found[1:]] == pytest.approx([cross, even, mean], rel=1e-12)
    assert float(found.total) == pytest.approx(cross + 0.5 * even - 1.5 * mean, rel=1e-12)
    assert len({round(value, 3) for value in (cross, even, mean)}) == 3
    turned = nclip_loss(y, x, **WEIGHTS)  # the modalities are equals
    assert [float(part) for part in turned] == pytest.approx([float(part) for part in found], rel=1e-12)
    bare = nclip_loss(x, y, eh_weight=0, he_weight=0)
    assert bare.total == bare.cross_entropy


def test_means_of_other_batches_take_the_place_of_the_batchs():
    x, y = logits(), logits(seed=1)
    means = [torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64), torch.tensor([0.5, 0.5, 0, 0])]
    found = nclip_loss(x, y, **WEIGHTS, image_mean=means[0], text_mean=means[1])
    own = nclip_loss(x, y, **WEIGHTS)
    expected = (entropy(means[0].tolist()) + math.log(2)) / 2
    assert float(found.entropy_of_mean) == pytest.approx(expected, rel=1e-12)
    assert found[1:3] == own[1:3]
    assert float(found.total) == pytest.approx(float(own.total) + 1.5 * (float(own.entropy_of_mean) - expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("height", [100.0, 1e4])
def test_all_on_one_code_cost_nothing(dtype, height):
    x = torch.full((6, 5), -height, dtype=dtype)
    x[:, 2] = height
    assert [float(part) for part in nclip_loss(x, x, **WEIGHTS)] == pytest.approx([0, 0, 0, 0], abs=1e-30)


def test_even_samples_have_the_entropy_log_c():
    x = torch.full((6, 5), 3.0, dtype=torch.float64)
    found = nclip_loss(x, x, **WEIGHTS)
    assert [float(part) for part in found[1:]] == pytest.approx([math.log(5)] * 3, rel=1e-12)
    assert float(found.total) == pytest.approx((1 + 0.5 - 1.5) * math.log(5), abs=1e-12)


@pytest.mark.parametrize(("rows", "codes"), [(4, 9), (9, 4), (6, 6)])
def test_sure_samples_reach_log_b_or_log_c_whichever_is_less(rows, codes):
    x = 200 * torch.eye(codes, dtype=torch.float64)[torch.arange(rows) % codes]
    found = nclip_loss(x, x, **WEIGHTS)
    assert float(found.cross_entropy) == pytest.approx(0, abs=1e-12)
    if rows <= codes or rows % codes == 0:
        assert float(found.entropy_of_mean) == pytest.approx(math.log(min(rows, codes)), rel=1e-12)
    assert float(found.entropy_of_mean) <= math.log(min(rows, codes)) + 1e-12


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 8), st.integers(1, 9), st.sampled_from([0.0, 0.1, 1.0, 10.0, 300.0]), st.integers(0, 10**6))
def test_what_a_code_says_of_a_sample_is_never_negative(rows, codes, scale, seed):
    """HE - EH is a mutual information; it lies in [0, log B], and both lie in [0, log C]."""
    x, y = logits(rows, codes, seed, scale), logits(rows, codes, seed + 1, scale)
    found = nclip_loss(x, y, **WEIGHTS)
    information = float(found.entropy_of_mean - found.mean_entropy)
    assert -1e-12 <= information <= math.log(rows) + 1e-12
    assert -1e-12 <= float(found.mean_entropy) <= float(found.entropy_of_mean) + 1e-12 <= math.log(codes) + 2e-12
    assert float(found.cross_entropy) >= float(found.mean_entropy) - 1e-12


def test_cross_entropy_is_entropy_and_both_divergences():
    """The first identity, with torch's own KL."""
    x, y = logits(), logits(seed=1)
    found = nclip_loss(x, y, **WEIGHTS)
    log_p, log_q = x.log_softmax(1), y.log_softmax(1)
    apart = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)  # KL(p, q)
    apart = (apart + F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)) / 2
    assert float(found.cross_entropy) == pytest.approx(float(found.mean_entropy + apart), rel=1e-12)


def test_entropy_of_the_mean_minus_mean_entropy_is_the_information_of_the_code():
    """The second identity: I = Σ p(i, c) log (p(i, c) / (p(i) p(c))), samples being equally likely."""
    x = logits()
    found = nclip_loss(x, x, **WEIGHTS)
    joint = [[value / 5 for value in row] for row in shares(x)]
    code = [sum(row[c] for row in joint) for c in range(4)]
    information = sum(joint[i][c] * math.log(joint[i][c] / (0.2 * code[c])) for i in range(5) for c in range(4))
    assert float(found.entropy_of_mean - found.mean_entropy) == pytest.approx(information, rel=1e-12)


@pytest.mark.parametrize("part", range(4))
def test_gradients_are_derivatives_and_reach_both_sides(part):
    x, y = logits(3).requires_grad_(), logits(3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: nclip_loss(x, y, **WEIGHTS)[part], (x, y))
    gradients = torch.autograd.grad(nclip_loss(x, y, **WEIGHTS)[part], (x, y))
    assert all(float(g.abs().max()) > 1e-3 for g in gradients)


def test_gradient_flows_through_the_given_means():
    x, y = logits(3).requires_grad_(), logits(3, seed=1).requires_grad_()
    ours = nclip_loss(x, y, **WEIGHTS, image_mean=mean_distribution(x), text_mean=mean_distribution(y))
    theirs = nclip_loss(x, y, **WEIGHTS)
    assert float(ours.total.detach()) == pytest.approx(float(theirs.total.detach()), rel=1e-12)
    pairs = zip(torch.autograd.grad(ours.total, (x, y)), torch.autograd.grad(theirs.total, (x, y)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_a_hundred_are_finite_with_their_gradients(dtype):
    x = 100 * (2 * (torch.rand(6, 5, generator=dice(0)) > 0.5).to(dtype) - 1)
    y = 100 * (2 * (torch.rand(6, 5, generator=dice(1)) > 0.5).to(dtype) - 1)
    x[:, 0], y[:, 0], y[:, 1] = -100, -100, 100  # no row takes code 0: its share underflows
    x, y = x.requires_grad_(), y.requires_grad_()
    found = nclip_loss(x, y, **WEIGHTS)
    assert all(bool(part.isfinite()) for part in found)
    gradients = torch.autograd.grad(found.total, (x, y))
    assert all(bool(g.isfinite().all()) for g in gradients) and bool(gradients[0].any())
    exact = nclip_loss(x.detach().double(), y.detach().double(), **WEIGHTS)
    assert [float(part.detach()) for part in found] == pytest.approx([float(part) for part in exact], rel=1e-5)


def test_half_precision_is_computed_in_float32():
    x, y = logits(dtype=torch.bfloat16), logits(seed=1, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = nclip_loss(x, y, **WEIGHTS)
        mean, penalty = mean_distribution(x), uniform_penalty(x, y)
    exact = nclip_loss(x.double(), y.double(), **WEIGHTS)
    assert found.total.dtype == mean.dtype == penalty.dtype == torch.float32
    assert [float(part) for part in found] == pytest.approx([float(part) for part in exact], rel=1e-5)


def test_the_loss_names_what_is_wrong():
    x, y = logits(), logits(seed=1)
    mean = torch.full((4,), 0.25)
    wrong = [
        ({"eh_weight": -1.0}, "eh_weight: expected a number of 0 or more, got -1"),
        ({"he_weight": math.nan}, "he_weight: expected a number of 0 or more, got nan"),
        ({"image_mean": mean}, "image_mean and text_mean: give both"),
        ({"image_mean": mean, "text_mean": mean[:3]}, r"text_mean: .* shape \(4,\), got \(3,\)"),
        ({"image_mean": x.mean(0), "text_mean": mean}, "image_mean: expected probabilities, .* not of the logits"),
        ({"image_mean": mean, "text_mean": mean / 2}, "text_mean: expected probabilities, .* sum of 0.5"),
        ({"image_mean": mean * math.nan, "text_mean": mean}, "image_mean: .*NaN"),
    ]
    for more, words in wrong:
        with pytest.raises(ValueError, match=words):
            nclip_loss(x, y, **{**WEIGHTS, **more})
    with pytest.raises(ValueError, match=r"image_logits and text_logits: row i .* got \(5, 4\) and \(5, 3\)"):
        nclip_loss(x, y[:, :3], **WEIGHTS)
    with pytest.raises(TypeError, match="text_logits: expected floating"):
        nclip_loss(x, y.long(), **WEIGHTS)
    with pytest.raises(TypeError, match="eh_weight: expected a number of 0 or more, got str"):
        nclip_loss(x, y, eh_weight="1", he_weight=1)
    for bad in (math.nan, math.inf, -math.inf):
        for loss in (lambda x, y: nclip_loss(x, y, **WEIGHTS), lambda x, y: nclip_loss(x, y, eh_weight=0, he_weight=0)):
            spoilt = y.clone()
            spoilt[3, 1] = bad
            with pytest.raises(ValueError, match="^text_logits: expected finite numbers, .* row 3"):
                loss(x, spoilt)
            with pytest.raises(ValueError, match="^image_logits: expected finite numbers, .* row 3"):
                loss(spoilt, x)


# ---------------------------------------------------------------------------------------------- means


def test_the_running_mean_mixes_and_has_the_gradient_of_the_batchs_part():
    x, running = logits().requires_grad_(), torch.tensor([0.4, 0.3, 0.2, 0.1], requires_grad=True)
    found = mean_distribution(x, running, momentum=0.9)
    batch = x.softmax(1).mean(0)
    torch.testing.assert_close(mean_distribution(x), batch)
    torch.testing.assert_close(mean_distribution(x, running), batch)
    torch.testing.assert_close(found, (0.9 * running.double() + 0.1 * batch).detach(), check_dtype=False)
    weight = torch.arange(4.0, dtype=torch.float64)
    ours, none = torch.autograd.grad(found @ weight, (x, running), allow_unused=True)
    torch.testing.assert_close(ours, 0.1 * torch.autograd.grad(batch @ weight, x)[0])
    assert none is None


def test_means_name_what_is_wrong():
    x = logits()
    with pytest.raises(ValueError, match="momentum is 0.9, but there is no running mean"):
        mean_distribution(x, momentum=0.9)
    with pytest.raises(ValueError, match="running: expected probabilities"):
        mean_distribution(x, x.mean(0), momentum=0.9)
    with pytest.raises(ValueError, match="momentum: expected a number in"):
        mean_distribution(x, x.softmax(1).mean(0), momentum=1.1)
    with pytest.raises(ValueError, match="logits: expected finite numbers"):
        mean_distribution(x * math.nan)


# ---------------------------------------------------------------------------------------------- two processes

WORLD, CODES = 2, 7


def layer_and_data():
    layer = nn.Linear(6, 2 * CODES, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=dice(1), dtype=torch.float64))
    return layer, torch.randn(9, 6, generator=dice(0), dtype=torch.float64)


def losses_of(layer, data, **options):
    x, y = layer(data).split(CODES, dim=1)
    means = {"image_mean": mean_distribution(x, **options), "text_mean": mean_distribution(y, **options)}
    return nclip_loss(x, y, **WEIGHTS, **means)


def worker(rank, port, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    try:
        layer, data = layer_and_data()
        for name, mine in (("even", slice(4 * rank, 4 * rank + 4)), ("uneven", [slice(0, 3), slice(3, 9)][rank])):
            for across in (True, False):
                parallel = DistributedDataParallel(layer)
                for part in ("total", "entropy_of_mean"):
                    layer.zero_grad()
                    loss = getattr(losses_of(parallel, data[mine], across=across), part)
                    loss.backward()
                    results[rank, name, across, part] = loss.item(), [p.grad.tolist() for p in layer.parameters()]
        torch.manual_seed(0)
        heads = CodeHeads(6, 6, codewords=CODES, hidden=8, norm="cosine", mean_momentum=0.9)
        image, text = torch.randn(2, 8, 6, generator=dice(2))
        mine = slice(4 * rank, 4 * rank + 4)
        own = heads.train().image_head(image[mine]).softmax(1).mean(0)
        heads(image[mine], text[mine])
        results[rank, "heads"] = own.tolist(), heads.image_mean.tolist()
        if rank == 0:  # evaluation on one process waits for nobody
            results["evaluated"] = float(heads.eval()(image[mine], text[mine])["loss"])
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(worker, args=(port, results), nprocs=WORLD)
        return dict(results)


def whole(rows, part):
    layer, data = layer_and_data()
    loss = getattr(losses_of(layer, data[:rows]), part)
    loss.backward()
    return loss.item(), [p.grad for p in layer.parameters()]


def far(got, expected):
    pairs = zip(got, expected, strict=True)
    return max(float((torch.tensor(ours, dtype=torch.float64) - theirs).abs().max()) for ours, theirs in pairs)


@pytest.mark.parametrize(("name", "rows"), [("even", 8), ("uneven", 9)])
def test_two_processes_have_the_entropy_of_the_whole_mean_and_its_gradient(two_processes, name, rows):
    loss, gradients = whole(rows, "entropy_of_mean")
    for rank in range(WORLD):
        got_loss, got = two_processes[rank, name, True, "entropy_of_mean"]
        assert got_loss == pytest.approx(loss, rel=1e-12) and far(got, gradients) < 1e-12
        got_loss, got = two_processes[rank, name, False, "entropy_of_mean"]  # so that this is known to tell them apart
        assert abs(got_loss - loss) > 1e-3 and far(got, gradients) > 1e-3


def test_two_processes_have_the_gradient_of_the_whole_loss(two_processes):
    _, gradients = whole(8, "total")
    assert all(far(two_processes[rank, "even", True, "total"][1], gradients) < 1e-12 for rank in range(WORLD))


def test_the_heads_share_their_means_in_training_and_evaluate_alone(two_processes):
    (first, kept), (second, other) = (two_processes[rank, "heads"] for rank in range(WORLD))
    expected = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert kept == pytest.approx(expected, rel=1e-5) and kept == other and kept != pytest.approx(first, rel=1e-2)
    assert math.isfinite(two_processes["evaluated"])


# ---------------------------------------------------------------------------------------------- the summary's penalty


def test_the_summarys_penalty_is_the_loop_and_cannot_see_collapse():
    x, y = logits(), logits(seed=1)
    cells = [(value - 0.25) ** 2 for row in shares(x) + shares(y) for value in row]
    assert float(uniform_penalty(x, y)) == pytest.approx(sum(cells) / len(cells), rel=1e-12)
    one, every = 200 * torch.eye(4, dtype=torch.float64)[[1, 1, 1, 1]], 200 * torch.eye(4, dtype=torch.float64)
    assert float(uniform_penalty(one, one)) == pytest.approx(3 / 16) == float(uniform_penalty(every, every))
    assert float(uniform_penalty(0 * one, 0 * one)) == 0
    assert torch.autograd.gradcheck(uniform_penalty, (x.requires_grad_(), y.requires_grad_()))
    # it pulls a sample away from being sure, where the cross-entropy pulls it there
    sure = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (up,) = torch.autograd.grad(uniform_penalty(sure, sure), sure)
    (down,) = torch.autograd.grad(nclip_loss(sure, sure, eh_weight=0, he_weight=0).cross_entropy, sure)
    assert float(up[0, 0]) > 0 > float(down[0, 0])
    with pytest.raises(ValueError, match="^image_logits: .*NaN"):
        uniform_penalty(x * math.nan, y)


# ---------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("prompts", [0, 3])
@pytest.mark.parametrize("by", SCORES)
def test_scores_are_the_loops(by, prompts):
    x, y = logits(3), logits(4 * max(prompts, 1), seed=1).reshape((4, prompts, 4) if prompts else (4, 4))
    found = distribution_scores(x, y, by)
    assert found.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            said = y[j] if prompts else y[j : j + 1]
            (p,), q = shares(x[i : i + 1]), [sum(column) / len(said) for column in zip(*shares(said), strict=True)]
            if by == "logits":
                p, q = x[i].tolist(), said.mean(0).tolist()
            lengths = math.hypot(*p) * math.hypot(*q)
            cosine = sum(a * b for a, b in zip(p, q, strict=True)) / lengths
            expected = -entropy(p, q) if by == "cross_entropy" else cosine
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-11)


def test_cosine_of_distributions_is_what_unless_another_is_asked_for():
    x, y = logits(3), logits(4, seed=1)
    assert torch.equal(distribution_scores(x, y), distribution_scores(x, y, "cosine"))
    far_apart = 100 * torch.eye(3)
    assert all(bool(distribution_scores(far_apart, -far_apart, by).isfinite().all()) for by in SCORES)


def test_scores_name_what_is_wrong():
    x, y = logits(3), logits(4, seed=1)
    with pytest.raises(ValueError, match="by is 'dot'; expected one of cosine, cross_entropy, logits"):
        distribution_scores(x, y, "dot")
    with pytest.raises(ValueError, match=r"text_logits: expected \(M, 4\) or \(M, R, 4\), got \(4, 3\)"):
        distribution_scores(x, y[:, :3])
    with pytest.raises(TypeError, match="image_logits"):
        distribution_scores(x.long(), y)
    for by in SCORES:
        with pytest.raises(ValueError, match="^text_logits: expected finite"):
            distribution_scores(x, y * math.nan, by)


# ---------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("temperature", [None, 0.4])
def test_a_head_is_its_layers_by_hand(norm, temperature):
    torch.manual_seed(0)
    head = CodeHead(6, 4, hidden=8, norm=norm, temperature=temperature).double().train()
    x = torch.randn(5, 6, generator=dice(3), dtype=torch.float64)
    middle = x @ head.body[0].weight.T
    middle = (middle - middle.mean(0)) / (middle.var(0, unbiased=False) + 1e-5).sqrt()
    middle = middle * 0.5 * (1 + torch.erf(middle / math.sqrt(2)))
    weight = head.last.weight
    if norm == "none":
        expected = middle @ weight.T + head.last.bias
    elif norm == "batch":
        out = middle @ weight.T
        expected = (out - out.mean(0)) / (out.var(0, unbiased=False) + 1e-5).sqrt()
    else:
        expected = (middle / middle.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).T
    expected = expected / (temperature or (0.1 if norm == "cosine" else 1.0))
    head.scale.float()
    torch.testing.assert_close(head(x), expected.float(), rtol=1e-4, atol=1e-5, check_dtype=False)
    assert sum(p.numel() for p in head.parameters()) == 6 * 8 + 2 * 8 + 8 * 4 + (4 if norm == "none" else 0)


def test_a_last_batch_norm_forbids_one_code_for_all():
    """Whatever the weights: every code has mean 0 over the batch, so none is the largest everywhere."""
    torch.manual_seed(0)
    x = torch.randn(64, 6, generator=dice(3))
    used = {}
    for norm in ("none", "batch"):
        head = CodeHead(6, 4, hidden=8, norm=norm).train()
        with torch.no_grad():
            (head.last.weight if head.last.bias is None else head.last.bias)[2] += 50
        used[norm] = len(head(x).argmax(1).unique())
    assert used == {"none": 1, "batch": 4}


def test_heads_name_what_is_wrong():
    for options, words in (
        ({"norm": "layer"}, "norm is 'layer'; expected one of none, batch, cosine"),
        ({"codewords": 0}, "expected codewords and hidden of 1 or more, got 0, 256"),
        ({"code_temperature": 0.0}, "temperature of the codes: expected a number above 0"),
        ({"eh_weight": -1.0}, "eh_weight: expected"),
        ({"he_weight": math.inf}, "he_weight: expected"),
        ({"uniform_weight": -0.1}, "uniform_weight: expected"),
        ({"mean_momentum": 1.5}, "mean_momentum: expected a number in"),
        ({"image": "mlp"}, "image tower"),
    ):
        for kind in (NCLIP, XCLIP):
            with pytest.raises(ValueError, match=words):
                kind.tiny(50, **options)
    with pytest.raises(ValueError, match="weight: expected a number of 0 or more"):
        XCLIP.tiny(50, weight=-1.0)
    with pytest.raises(ValueError, match="a batch of one cannot be normalised over the batch"):
        CodeHead(6, 4, hidden=8).train()(torch.zeros(1, 6))
    assert CodeHead(6, 4, hidden=8).eval()(torch.zeros(1, 6)).shape == (1, 4)
    assert CodeHead(6, hidden=8).codewords == 32_768


# ---------------------------------------------------------------------------------------------- the modules


def stirred(model):
    """Sure codes, so that all parts differ from those of even distributions."""
    with torch.no_grad():
        for head in (model.heads.image_head, model.heads.text_head):
            head.last.weight.mul_(20)
    return model


def texts(data):
    return data["input_ids"], data["attention_mask"]


@pytest.mark.parametrize("kind", [NCLIP, XCLIP])
@pytest.mark.parametrize("options", [{}, {"norm": "none", "uniform_weight": 3.0}, {"norm": "cosine"}])
def test_a_step_is_the_paper_by_hand(kind, options):
    model = stirred(kind.tiny(50, codewords=8, eh_weight=0.3, he_weight=1.2, **options)).train()
    before, data = copy.deepcopy(model), make_batch()
    found = model(data)
    x, y = before.image_logits(data["image"]), before.text_logits(*texts(data))
    parts = nclip_loss(x, y, eh_weight=0.3, he_weight=1.2)
    expected = parts._asdict()
    total = expected.pop("total")
    if "uniform_weight" in options:
        expected["uniform_penalty"] = uniform_penalty(x, y)
        total = total + 3 * expected["uniform_penalty"]
    if kind is XCLIP:
        before = copy.deepcopy(before)
        v, w = before.image_features(data["image"]), before.text_features(*texts(data))
        clip = clip_loss(v, w, temperature=0.07)
        expected = {"clip": clip, "nclip": total, **expected, "temperature": torch.tensor(0.07)}
        total = clip + 0.3 * total
    assert list(found) == ["loss", *expected]
    for name, value in {"loss": total, **expected}.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_xclip_without_its_second_half_is_clip():
    ours, theirs = XCLIP.tiny(50, weight=0.0).train(), CLIP.tiny(50).train()
    found, expected = ours(make_batch()), theirs(make_batch())
    assert torch.equal(found["loss"], expected["loss"])
    with torch.no_grad():
        ours.logit_scale.fill_(10.0)
    assert float(ours(make_batch())["temperature"]) == pytest.approx(0.01)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [NCLIP, XCLIP])
def test_every_weight_learns(kind, norm):
    model = kind.tiny(50, norm=norm).train()
    model(make_batch())["loss"].backward()
    learning = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, grad in learning.items() if grad is None or not grad.abs().sum() > 0] == []
    assert ("logit_scale" in learning) == (kind is XCLIP)


def test_running_means_start_with_the_first_batch_and_follow():
    model = NCLIP.tiny(50, codewords=8, mean_momentum=0.75).train()
    batches = [make_batch(seed=seed) for seed in range(2)]
    with torch.no_grad():
        seen = [copy.deepcopy(model).train().image_logits(one["image"]).softmax(1).mean(0) for one in batches]
        read = [copy.deepcopy(model).train().text_logits(*texts(one)).softmax(1).mean(0) for one in batches]
    model(batches[0])
    torch.testing.assert_close(model.heads.image_mean, seen[0])
    found = model(batches[1])
    means = [0.75 * first + 0.25 * second for first, second in (seen, read)]
    torch.testing.assert_close(model.heads.image_mean, means[0])
    torch.testing.assert_close(model.heads.text_mean, means[1])
    assert int(model.heads.steps) == 2
    expected = sum(entropy(mean.tolist()) for mean in means) / 2
    assert float(found["entropy_of_mean"].detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [NCLIP, XCLIP])
def test_nothing_moves_in_evaluation(kind):
    model = kind.tiny(50, mean_momentum=0.5).train()
    model(make_batch(seed=1))
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (model(make_batch()) for _ in range(2))
    assert first["loss"].item() == second["loss"].item()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", [NCLIP, XCLIP])
def test_saved_and_loaded_it_is_the_same(tmp_path, kind):
    model = kind.tiny(50, codewords=8, hidden=16, norm="cosine", mean_momentum=0.5).train()
    model(make_batch())
    again = kind.load(model.save(tmp_path, note=1))
    assert again.built == model.built and again.heads.mean_momentum == 0.5 and int(again.heads.steps) == 1
    model.eval()
    data = make_batch(seed=1)
    assert torch.equal(again(data)["loss"], model(data)["loss"])
    assert torch.equal(again.image_logits(data["image"]), model.image_logits(data["image"]))
    with pytest.raises(ValueError, match=f"describes a '{kind.__name__.lower()}', not a 'clip'"):
        CLIP.load(tmp_path)


def test_features_of_nclip_multiply_to_the_cosine_of_distributions():
    model, data = stirred(NCLIP.tiny(50, codewords=8)).eval(), make_batch()
    images, words = encode_images(model, data["image"], 4), encode_texts(model, data, 4)
    assert images.shape == (6, 8) and bool((images >= 0).all())
    torch.testing.assert_close(images.norm(dim=1), torch.ones(6))
    codes = encode_images(model, data["image"], way="image_logits"), encode_texts(model, data, way="text_logits")
    torch.testing.assert_close(images @ words.T, distribution_scores(*codes), rtol=1e-5, atol=1e-6)
    assert torch.equal(images.argmax(1), codes[0].argmax(1))
    assert set(recall_from_features(images, words, torch.arange(6), ks=(1,))) == {"i2t@1", "t2i@1"}


def test_features_of_xclip_are_clips_and_its_codes_nclips():
    model, clip, data = XCLIP.tiny(50, codewords=8).eval(), CLIP.tiny(50).eval(), make_batch()
    assert torch.equal(encode_images(model, data["image"]), encode_images(clip, data["image"]))
    assert torch.equal(encode_texts(model, data), encode_texts(clip, data))
    assert encode_images(model, data["image"], way="image_logits").shape == (6, 8)
    assert encode_texts(model, data, way="text_logits").shape == (6, 8)


def test_tiny_has_small_heads_and_the_class_the_papers():
    tiny = NCLIP.tiny(50)
    assert tiny.heads.image_head.codewords == 64 and tiny.heads.image_head.norm == "batch"
    paper = NCLIP(tiny.image_encoder, tiny.text_encoder, hidden=2)
    assert paper.heads.text_head.codewords == 32_768
    state = torch.get_rng_state()
    a, b, c = NCLIP.tiny(50, seed=1), NCLIP.tiny(50, seed=1), NCLIP.tiny(50, seed=2)
    assert torch.equal(state, torch.get_rng_state())
    first = [model.heads.image_head.last.weight for model in (a, b, c)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


@pytest.mark.parametrize("kind", [NCLIP, XCLIP])
def test_a_batch_of_one_is_refused(kind):
    with pytest.raises(ValueError, match="batch of one"):
        kind.tiny(50).train()(make_batch(1))
