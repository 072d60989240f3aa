"""Optimal transport: closed forms, a naive loop, Sinkhorn's identity, POT as judge, properties, errors."""

import math

import ot
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlnotes import transport
from vlnotes.transport import ipot, sinkhorn


def cosine_costs(*shape, seed=0, dtype=torch.float64):
    """1 - cosine of random directions in 64 dimensions."""
    dice = torch.Generator().manual_seed(seed)
    *batch, n, c = shape
    x, y = (torch.randn(*batch, k, 64, generator=dice, dtype=torch.float64) for k in (n, c))
    unit = torch.nn.functional.normalize
    return (1 - unit(x, dim=-1) @ unit(y, dim=-1).mT).to(dtype)


def masses(*shape, seed=0):
    mass = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05
    return mass / mass.sum(-1, keepdim=True)


def naive_ipot(cost, mu, nu, beta, outer, inner):
    """Algorithm 1 of the paper, entry by entry; a mass of 0 gets the factor 0, where the paper would divide 0 by 0."""
    n, c = cost.shape
    plan, b = torch.ones_like(cost), torch.full((c,), 1 / c, dtype=cost.dtype)
    for _ in range(outer):
        q = torch.exp(-cost / beta) * plan
        for _ in range(inner):
            a = [mu[i] / sum(q[i, j] * b[j] for j in range(c)) if mu[i] > 0 else mu[i] for i in range(n)]
            b = [nu[j] / sum(q[i, j] * a[i] for i in range(n)) if nu[j] > 0 else nu[j] for j in range(c)]
        plan = torch.stack(a)[:, None] * q * torch.stack(b)
    return plan


def exact(cost, mu=None, nu=None):
    n, c = cost.shape
    mu = torch.full((n,), 1 / n, dtype=torch.float64) if mu is None else mu
    nu = torch.full((c,), 1 / c, dtype=torch.float64) if nu is None else nu
    return float(ot.emd2(mu.numpy(), nu.numpy(), cost.double().numpy(), numItermax=10**6))


@pytest.fixture(params=["plain", "float64 plan", "logarithms"])
def held(request, monkeypatch):
    """Each of the three ways to hold the numbers, whatever the costs."""
    if request.param == "plain":
        monkeypatch.setattr(transport, "NARROW", math.inf)
    if request.param == "float64 plan":
        monkeypatch.setattr(transport, "NARROW", -1.0)
    if request.param == "logarithms":
        monkeypatch.setattr(transport, "FADES", {torch.float32: -1.0, torch.float64: -1.0})
    return request.param


# --- closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_two_by_two_has_a_closed_form(steps, held):
    cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    stay = 0.5 / (1 + math.exp(-steps / 0.4))
    expected = torch.tensor([[stay, 0.5 - stay], [0.5 - stay, stay]], dtype=torch.float64)
    torch.testing.assert_close(ipot(cost, beta=0.4, outer=steps).plan, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(sinkhorn(cost, epsilon=0.4 / steps).plan, expected, rtol=1e-12, atol=1e-14)


def test_one_row_or_one_column_leaves_no_choice():
    nu = masses(5)
    cost = cosine_costs(1, 5)
    torch.testing.assert_close(ipot(cost, None, nu).plan, nu[None])
    torch.testing.assert_close(ipot(cost.T, nu).plan, nu[:, None])
    torch.testing.assert_close(sinkhorn(cost, None, nu).value, (cost[0] * nu).sum())
    assert float(ipot(torch.full((1, 1), 3.0)).value) == 3


def test_equal_costs_give_the_product_of_the_marginals():
    mu, nu = masses(4), masses(6, seed=1)
    made = ipot(torch.full((4, 6), 0.7, dtype=torch.float64), mu, nu, beta=0.01)
    torch.testing.assert_close(made.plan, mu[:, None] * nu)
    assert float(made.value) == pytest.approx(0.7) and float(made.row_error) < 1e-14


# --- naive loop and Sinkhorn's identity -----------------------------------------------------------


@pytest.mark.parametrize("beta", [0.03, 0.2, 2.0])
@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (6, 1), (4, 3)])
@pytest.mark.parametrize("tile", [2**16, 10])
def test_ipot_equals_the_papers_loop(beta, outer, inner, tile, held, monkeypatch):
    monkeypatch.setattr(transport, "_tile_entries", lambda x: tile)
    cost, mu, nu = cosine_costs(5, 4), masses(5), masses(4, seed=1)
    cost = cost + torch.tensor([0.0, 0.3, 0.5, 0.1]).double() + torch.arange(5)[:, None] / 10  # dear columns and rows
    expected = naive_ipot(cost, mu, nu, beta, outer, inner)
    made = ipot(cost, mu, nu, beta=beta, outer=outer, inner=inner)
    torch.testing.assert_close(made.plan, expected, rtol=1e-9, atol=1e-12)
    assert float(made.value) == pytest.approx(float((expected * cost).sum()), rel=1e-12)
    assert float(made.row_error) == pytest.approx(float((expected.sum(1) - mu).abs().sum()), rel=1e-6, abs=1e-14)
    single = ipot(cost.float(), mu.float(), nu.float(), beta=beta, outer=outer, inner=inner)
    torch.testing.assert_close(single.plan.double(), expected, rtol=1e-3, atol=1e-6)


def test_masses_of_zero_go_through_the_papers_loop_too(held):
    mu, nu = torch.tensor([0.5, 0.0, 0.3, 0.2]).double(), torch.tensor([0.0, 0.6, 0.4]).double()
    cost = cosine_costs(4, 3)
    expected = naive_ipot(cost, mu, nu, 0.2, 8, 1)
    made = ipot(cost, mu, nu, beta=0.2, outer=8)
    torch.testing.assert_close(made.plan, expected, rtol=1e-9, atol=1e-13)
    assert not made.plan[1].any() and not made.plan[:, 0].any()


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_solved_exactly_step_t_is_sinkhorn_at_beta_over_t(beta, steps):
    cost, mu, nu = cosine_costs(12, 7), masses(12), masses(7, seed=1)
    walked = ipot(cost, mu, nu, beta=beta, outer=steps, inner=2000)
    jumped = sinkhorn(cost, mu, nu, epsilon=beta / steps, iterations=20_000, tol=1e-14)
    assert float((walked.plan - jumped.plan).abs().max()) < 1e-10
    judge = ot.sinkhorn(mu.numpy(), nu.numpy(), cost.numpy(), beta / steps, numItermax=20_000, stopThr=1e-14)
    assert float((jumped.plan - torch.from_numpy(judge)).abs().max()) < 1e-10


def test_one_step_with_many_rounds_is_sinkhorn():
    cost = cosine_costs(9, 6)
    torch.testing.assert_close(
        ipot(cost, beta=0.1, outer=1, inner=300).plan, sinkhorn(cost, epsilon=0.1, iterations=300, tol=None).plan
    )


# --- against the exact solver ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (48, 150)])
@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize(("beta", "steps", "gap"), [(0.5, 50, 1e-2), (0.1, 50, 5e-4), (0.1, 2000, 1e-6)])
def test_the_value_comes_close_to_the_exact_one(shape, uniform, beta, steps, gap):
    cost = cosine_costs(*shape)
    mu, nu = (None, None) if uniform else (masses(shape[0]), masses(shape[1], seed=1))
    best = exact(cost, mu, nu)
    found = ipot(cost, mu, nu, beta=beta, outer=steps)
    assert abs(float(found.value) / best - 1) <= gap
    assert float((found.plan.sum(0) - (1 / shape[1] if nu is None else nu)).abs().max()) < 1e-12


def test_sinkhorn_stays_above_the_optimum_and_falls_with_epsilon():
    cost = cosine_costs(20, 30)
    values = [float(sinkhorn(cost, epsilon=e, iterations=5000).value) for e in (0.5, 0.1, 0.02)]
    assert values == sorted(values, reverse=True) and values[-1] > exact(cost)


def test_the_gradient_is_that_of_the_exact_optimum():
    """A finite difference of POT's optimum in a random direction, on costs whose best plan is unique."""
    features, codes = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)).double() for n in (8, 6))
    features.requires_grad_()
    direction = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)).double()

    def costs(x):
        return ((x[:, None] - codes) ** 2).sum(-1)

    ipot(costs(features), beta=0.5, outer=3000).value.backward()
    step = 1e-5
    ahead, behind = (exact(costs(features.detach() + s * direction)) for s in (step, -step))
    assert float((features.grad * direction).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-5)


def test_the_gradient_of_the_value_is_the_plan_and_nothing_else_has_one():
    cost = cosine_costs(2, 5, 4).requires_grad_()
    mu = masses(5).requires_grad_()
    made = ipot(cost, mu)
    assert not made.plan.requires_grad and not made.row_error.requires_grad
    weights = torch.tensor([2.0, -3.0]).double()
    (slope,) = torch.autograd.grad((made.value * weights).sum(), cost, create_graph=True)
    assert torch.equal(slope, weights[:, None, None] * made.plan)
    assert mu.grad is None and not slope.requires_grad


# --- batches, dtypes, stopping --------------------------------------------------------------------


@pytest.mark.parametrize("solve", [ipot, sinkhorn])
@pytest.mark.parametrize("tile", [2**16, 70, 7])
def test_a_batch_is_its_problems_one_by_one(solve, tile, held, monkeypatch):
    monkeypatch.setattr(transport, "_tile_entries", lambda x: tile)
    cost, mu, nu = cosine_costs(2, 3, 6, 5), masses(3, 6), masses(5, seed=1)
    options = {"tol": None} if solve is ipot else {"tol": None, "iterations": 40}
    many = solve(cost, mu, nu, **options)
    assert many.plan.shape == cost.shape and many.value.shape == many.row_error.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = solve(cost[i, j], mu[j], nu, **options)
            assert one.value.shape == ()
            torch.testing.assert_close(many.plan[i, j], one.plan, rtol=1e-10, atol=1e-14)
            torch.testing.assert_close(many.value[i, j], one.value)


def test_the_cost_is_left_as_it_was_and_may_lie_in_memory_in_any_order(held):
    cost = cosine_costs(7, 9)
    before, version = cost.clone(), cost._version
    plan = ipot(cost, beta=0.05).plan
    assert torch.equal(cost, before) and cost._version == version
    torch.testing.assert_close(ipot(cost.T.contiguous().T, beta=0.05).plan, plan)
    assert ipot(cost[:1].expand(4, 9)).plan.shape == (4, 9)


def test_half_precision_is_computed_in_float32_and_autocast_does_not_enter():
    cost = cosine_costs(16, 12, dtype=torch.float32)
    expected = ipot(cost, beta=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ipot(cost, beta=0.1)
    assert torch.equal(inside.plan, expected.plan)
    rough = cost.bfloat16().requires_grad_()
    made = ipot(rough, beta=0.1)
    assert made.plan.dtype == made.value.dtype == torch.float32
    made.value.backward()
    assert rough.grad.dtype == torch.bfloat16


def test_it_stops_at_the_tolerance_and_says_when():
    cost = cosine_costs(10, 10)
    loose, tight = (ipot(cost, beta=0.3, outer=500, tol=t) for t in (1e-2, 1e-5))
    assert loose.iterations < tight.iterations < 500
    assert float(loose.row_error) <= 1e-2 and float(tight.row_error) <= 1e-5
    before = ipot(cost, beta=0.3, outer=tight.iterations - 1)
    assert float(before.row_error) > 1e-5
    missed = ipot(cost, beta=0.3, outer=3, tol=1e-12)
    assert missed.iterations == 3 and float(missed.row_error) > 1e-12  # reported, not raised
    both = ipot(torch.stack([cost, cosine_costs(10, 10, seed=5)]), beta=0.3, outer=500, tol=1e-5)
    assert both.iterations >= tight.iterations and float(both.row_error.max()) <= 1e-5
    assert sinkhorn(cost.float()).iterations < 1000  # float32 cannot tell 1e-9: what it can counts as reached


# --- small beta -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 0.05, 0.02, 0.01, 0.003, 0.001])
def test_float32_stays_with_float64_at_small_beta(beta):
    cost = cosine_costs(60, 80, dtype=torch.float32)
    single, double = ipot(cost, beta=beta), ipot(cost.double(), beta=beta)
    assert float(single.value) == pytest.approx(float(double.value), rel=1e-4)
    assert float(single.row_error) == pytest.approx(float(double.row_error), rel=0.02, abs=1e-5)


def test_float32_keeps_what_is_dear_but_needed():
    """On a line that must be moved far, the plan rests on entries that no row and no column finds cheap."""
    places = torch.linspace(0, 1, 20, dtype=torch.float64)
    cost = (places[:, None] - torch.linspace(0.5, 2.5, 15, dtype=torch.float64)) ** 2
    for beta in (0.02, 0.01, 0.005):  # spans of 188 and beyond
        single, double = ipot(cost.float(), beta=beta, outer=8), ipot(cost, beta=beta, outer=8)
        torch.testing.assert_close(single.plan.double(), double.plan, rtol=1e-2, atol=1e-5)
    forced, mu = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), torch.tensor([0.9, 0.1]).double()
    single, double = (ipot(c, mu.to(c.dtype), beta=0.01, outer=2, inner=30) for c in (forced.float(), forced))
    assert float(single.plan[0, 1]) == pytest.approx(float(double.plan[0, 1]), rel=1e-4)  # through exp(-100)


def test_no_entry_of_the_work_sinks_into_denormals(monkeypatch):
    """They are what makes a naive float32 loop several times slower."""
    low, before_the_end = [], []
    times, finish = transport._times, transport._finish

    def watched(m, v):
        low.append(float(m.min()) / torch.finfo(m.dtype).tiny)
        return times(m, v)

    def ended(*given):
        before_the_end.append(min(low))
        return finish(*given)

    monkeypatch.setattr(transport, "_times", watched)
    monkeypatch.setattr(transport, "_finish", ended)
    for beta in (0.1, 0.02):  # plain, float64 plan
        low.clear()
        ipot(cosine_costs(40, 50, dtype=torch.float32), beta=beta, outer=200)
    assert len(before_the_end) == 2 and min(before_the_end) > 1


def test_at_most_three_matrices_are_held(monkeypatch):
    monkeypatch.setattr("vlnotes.transport._tile_entries", lambda x: 2**16)  # or all is one tile, with enough threads
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor) and leaf.numel() >= 300 * 1000:
                    seen[leaf.untyped_storage().data_ptr()] = leaf.untyped_storage().nbytes()
            return out

    for beta in (0.1, 0.02):  # plain, float64 plan
        cost, seen = cosine_costs(300, 1000, dtype=torch.float32), {}
        with Watch():
            ipot(cost, beta=beta, outer=3)
        seen.pop(cost.untyped_storage().data_ptr(), None)
        assert sum(seen.values()) <= 3 * cost.nbytes


# --- properties -----------------------------------------------------------------------------------


@st.composite
def problems(draw):
    n, c = draw(st.integers(1, 50)), draw(st.integers(1, 70))
    dice = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["even", "cosine", "line", "shifted", "ties"]))
    cost = torch.rand(n, c, generator=dice, dtype=torch.float64)
    if kind == "cosine":
        cost = 1 + torch.randn(n, c, generator=dice, dtype=torch.float64) / 8
    elif kind == "line":
        cost = (cost[:, :1] - torch.rand(1, c, generator=dice, dtype=torch.float64)).abs()
    elif kind == "shifted":
        cost = cost + 3 * torch.randn(n, 1, generator=dice).double() + 3 * torch.randn(1, c, generator=dice).double()
    elif kind == "ties":
        cost = (3 * cost).floor()
    cost = cost + draw(st.sampled_from([0.0, 0.0, 5.0, -7.0]))

    def mass(size):
        some = torch.rand(size, generator=dice, dtype=torch.float64)
        kind = draw(st.sampled_from(["uniform", "random", "zeros", "tiny"]))
        if kind == "uniform":
            some = torch.ones_like(some)
        elif kind == "zeros":
            some = some * (torch.rand(size, generator=dice) > 0.4)
        elif kind == "tiny":
            some = some**40
        some[0] += not some.any()
        return some / some.sum()

    return cost, mass(n), mass(c), 10 ** draw(st.floats(-3, 1)), draw(st.sampled_from([1, 2, 7, 50]))


def check_plan(made, cost, mu, nu):
    plan = made.plan.double()
    close = 1e-12 if cost.dtype == torch.float64 else 1e-6
    assert bool(plan.isfinite().all()) and bool((plan >= 0).all())
    assert float(plan.sum()) == pytest.approx(1, abs=10 * close)
    assert float((plan.sum(0) - nu).abs().max()) <= close
    assert float((plan.sum(1) - mu).abs().sum()) == pytest.approx(float(made.row_error), rel=1e-6, abs=10 * close)
    assert float(made.value) == pytest.approx(float((plan * cost).sum()), rel=1e-5, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([torch.float32, torch.float64]), st.booleans())
@example((torch.tensor([[0.0, 1e3]]).double(), torch.ones(1).double(), masses(2), 1e-3, 50), torch.float32, False)
def test_a_plan_is_a_plan_whatever_the_costs(problem, dtype, blurred):
    cost, mu, nu, beta, outer = problem
    cost, mu, nu = cost.to(dtype), mu.to(dtype), nu.to(dtype)
    if blurred:
        made = sinkhorn(cost, mu, nu, epsilon=beta, iterations=outer)
    else:
        made = ipot(cost, mu, nu, beta=beta, outer=outer)
    check_plan(made, cost, mu.double(), nu.double())


@settings(max_examples=25, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_permuted_problems_have_permuted_plans(problem, random):
    cost, mu, nu, beta, _ = problem
    rows, columns = list(range(len(mu))), list(range(len(nu)))
    random.shuffle(rows)
    random.shuffle(columns)
    made = ipot(cost, mu, nu, beta=beta, outer=7)
    moved = ipot(cost[rows][:, columns], mu[rows], nu[columns], beta=beta, outer=7)
    torch.testing.assert_close(moved.plan, made.plan[rows][:, columns], rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(problems(), st.floats(-10, 10))
def test_a_constant_on_all_costs_changes_no_plan(problem, constant):
    cost, mu, nu, beta, _ = problem
    made, moved = (ipot(c, mu, nu, beta=beta, outer=7) for c in (cost, cost + constant))
    torch.testing.assert_close(moved.plan, made.plan, rtol=1e-6, atol=1e-9)
    assert float(moved.value) == pytest.approx(float(made.value) + constant, abs=1e-6)


# --- bad inputs -----------------------------------------------------------------------------------

COST = cosine_costs(3, 4)


def with_entry(value):
    cost = COST.clone()
    cost[1, 2] = value
    return cost


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((with_entry(math.nan),), {}, "cost: expected finite.*row 1"),
        ((with_entry(math.inf),), {}, "cost: expected finite"),
        ((with_entry(-math.inf),), {}, "cost: expected finite"),
        ((COST[0],), {}, r"cost: expected shape .*got \(4,\)"),
        ((COST[:0],), {}, "cost: .*not empty"),
        ((COST, masses(4)), {}, r"mu: expected shape \(3,\).*got \(4,\)"),
        ((COST, None, masses(3)), {}, r"nu: expected shape \(4,\)"),
        ((COST, masses(2, 3)), {}, "mu: expected shape"),
        ((COST.expand(2, 3, 4), masses(5, 3)), {}, "mu: expected shape"),
        ((COST, torch.tensor([0.6, 0.6, -0.2]).double()), {}, "mu: a mass cannot be negative"),
        ((COST, None, 2 * masses(4)), {}, "nu: expected masses that sum to 1, got a sum of 2"),
        ((COST, torch.tensor([math.nan, 0.5, 0.5])), {}, "mu: expected finite"),
        ((COST,), {"beta": 0.0}, "beta: expected a finite number above 0"),
        ((COST,), {"beta": -1.0}, "beta"),
        ((COST,), {"beta": math.nan}, "beta"),
        ((COST,), {"beta": math.inf}, "beta"),
        ((COST,), {"outer": 0}, "outer: expected 1 or more"),
        ((COST,), {"inner": -2}, "inner"),
        ((COST,), {"tol": -1e-3}, "tol"),
    ],
)
def test_bad_values_are_named(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        ipot(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((COST.numpy(),), {}, "cost: expected a torch.Tensor"),
        ((COST.long(),), {}, "cost: expected floating"),
        ((COST, [0.2, 0.3, 0.5]), {}, "mu: expected a torch.Tensor"),
        ((COST, None, torch.ones(4).long()), {}, "nu: expected floating"),
        ((COST,), {"beta": "0.5"}, "beta: expected a plain number"),
        ((COST,), {"outer": 2.5}, "outer: expected a whole number"),
        ((COST,), {"inner": True}, "inner"),
    ],
)
def test_wrong_kinds_are_named(arguments, options, words):
    with pytest.raises(TypeError, match=words):
        ipot(*arguments, **options)


def test_sinkhorn_names_its_own_arguments():
    with pytest.raises(ValueError, match="epsilon: expected"):
        sinkhorn(COST, epsilon=0)
    with pytest.raises(ValueError, match="iterations: expected"):
        sinkhorn(COST, iterations=0)


def test_devices_must_agree():
    with pytest.raises(ValueError, match="nu on meta"):
        ipot(COST, None, torch.empty(4, device="meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("beta", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gpu_finds_the_same_plan(beta, dtype):
    cost = cosine_costs(3, 40, 60, dtype=dtype)
    here, there = ipot(cost, beta=beta), ipot(cost.cuda(), beta=beta)
    torch.testing.assert_close(there.value.cpu(), here.value, rtol=1e-4, atol=1e-5)
    assert float((there.plan.cpu().sum(-2) - 1 / 60).abs().max()) < (1e-12 if dtype == torch.float64 else 1e-7)
