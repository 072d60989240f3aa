"""`ipot` beside POT's exact solver `emd2`: time, memory, and how far its value lies from the exact one.

Costs are 1 - cosine of random directions in 256 dimensions, marginals uniform. `python transport.py CASE` prints the
memory growth of one case in MB, `python transport.py gaps` the largest relative gaps in float64.
"""

import sys

import torch
import torch.nn.functional as F
from measure import Row, growth_in_a_fresh_process, growth_mb, installed, interleaved_ms

from vlnotes.transport import ipot

SHAPES = {(256, 500): (0.5, 21), (256, 4000): (0.45, 9), (1024, 4000): (0.32, 5)}  # (goal of the ratio, repeats)


def costs(*shape, seed=0):
    """(..., N, C) float64 on the CPU."""
    dice = torch.Generator().manual_seed(seed)
    *batch, n, c = shape
    x, y = (F.normalize(torch.randn(*batch, k, 256, generator=dice, dtype=torch.float64), dim=-1) for k in (n, c))
    return 1 - x @ y.mT


def exact(cost, mu=None, nu=None):
    import ot

    given = zip(cost.shape, (mu, nu), strict=True)
    masses = [torch.full((n,), 1 / n, dtype=torch.float64) if m is None else m for n, m in given]
    return float(ot.emd2(masses[0].numpy(), masses[1].numpy(), cost.numpy(), numItermax=10**7))


def case(name):
    """The step of a case such as "256x4000" or "256x4000 POT"."""
    shape, _, peer = name.partition(" ")
    n, c = map(int, shape.split("x"))
    if peer:
        double = costs(n, c)
        return lambda: exact(double)
    single = costs(n, c).float()
    return lambda: ipot(single, beta=0.1, outer=50)


def rows():
    for shape, (goal, repeat) in SHAPES.items():
        name = "{}x{}".format(*shape)
        mine = case(name)
        memory = growth_in_a_fresh_process(__file__, name)
        matrix = 4 * shape[0] * shape[1] / 2**20
        if not installed("ot"):
            (ours,) = interleaved_ms(mine, repeat=repeat)
            yield Row(f"ipot {name}", ours, "emd2", None, memory, None, "POT not installed")
            continue
        peer = case(f"{name} POT")
        ours, theirs = interleaved_ms(mine, peer, repeat=repeat)
        gap = abs(float(mine().value) / peer() - 1)
        note = f"goal: ratio {goal}; gap {gap:.1e}, goal 5e-4; a matrix is {matrix:.1f} MB, goal: 3 of them"
        yield Row(
            f"ipot {name}", ours, "emd2", theirs, memory, growth_in_a_fresh_process(__file__, f"{name} POT"), note
        )
    batch = costs(32, 256, 500).float()
    together, alone = interleaved_ms(
        lambda: ipot(batch, beta=0.1), lambda: [ipot(c, beta=0.1) for c in batch], repeat=5
    )
    yield Row("ipot 32 x 256x500", together, "32 single", alone, note="goal: ratio 1.1")
    if torch.cuda.is_available() and installed("ot"):
        shape = (1024, 4000)
        there, peer = costs(*shape).float().cuda(), case("1024x4000 POT")

        def step():
            ipot(there, beta=0.1)
            torch.cuda.synchronize()

        ours, theirs = interleaved_ms(step, peer, repeat=3)
        yield Row("ipot 1024x4000, GPU", ours, "emd2, CPU", theirs, note="goal: ratio 0.05")


def gaps():
    """Largest |value / exact - 1| over shapes and marginals, and the largest column error, float64."""
    settings = {(0.5, 50): 1e-2, (0.1, 50): 5e-4, (0.1, 2000): 1e-6}
    for n, c in ((64, 64), (256, 500), (256, 4000), (1024, 4000)):
        cost = costs(n, c)
        dice = torch.Generator().manual_seed(1)
        drawn = [torch.rand(k, generator=dice, dtype=torch.float64) + 0.05 for k in (n, c)]
        for kind, (mu, nu) in {"uniform": (None, None), "random": [m / m.sum() for m in drawn]}.items():
            best = exact(cost, mu, nu)
            for (beta, steps), goal in settings.items():
                if steps == 2000 and n * c > 256 * 4000:
                    continue
                made = ipot(cost, mu, nu, beta=beta, outer=steps)
                off = float((made.plan.sum(0) - (1 / c if nu is None else nu)).abs().max())
                print(
                    f"{n}x{c} {kind:<8} beta {beta} steps {steps:<5} gap {abs(float(made.value) / best - 1):.1e} "
                    f"(goal {goal:.0e})  columns {off:.0e}  rows {float(made.row_error):.0e}",
                    flush=True,
                )
    draws = [costs(64, 64, seed=seed) for seed in range(100)]  # where two plans cost nearly the same, it takes longer
    for kind in ("uniform", "random"):
        found = []
        for seed, cost in enumerate(draws):
            dice = torch.Generator().manual_seed(1000 + seed)
            masses = [torch.rand(64, generator=dice, dtype=torch.float64) + 0.05 for _ in range(2)]
            mu, nu = (None, None) if kind == "uniform" else (m / m.sum() for m in masses)
            found.append(abs(float(ipot(cost, mu, nu, beta=0.1, outer=2000).value) / exact(cost, mu, nu) - 1))
        gap = torch.tensor(found)
        print(
            f"64x64 {kind:<8} beta 0.1 steps 2000, 100 draws: median gap {gap.median():.1e}, largest {gap.max():.1e}, "
            f"{int((gap <= 1e-6).sum())} within 1e-06"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "gaps":
        gaps()
    else:
        ipot(costs(4, 4), beta=0.1)  # warm up what a first call loads
        if "POT" in sys.argv[1]:
            exact(costs(4, 4))
        print(growth_mb(case(sys.argv[1])))
