"""How fast scenes, captions and pictures are made, on one thread."""

import time

import torch

from vlnotes.world import DOMAINS, World, captions


def _best(call, repeats: int = 7) -> float:
    """Shortest of several runs, in seconds: the one least disturbed by other processes."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def rows() -> list[dict]:
    """One row a measurement: what, ours_ms, peer, peer_ms, note."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        table = []
        for name in DOMAINS:
            world = World(name)
            scenes = world.scenes(256)
            for size in (64, 32):
                spent = _best(lambda world=world, scenes=scenes, size=size: world.draw(scenes, size)) / len(scenes)
                note = f"{1 / spent:,.0f} pictures/s a core"
                table.append(_row(f"draw one picture, {name}, {size} px", spent, note))
            spent = _best(lambda world=world: [captions(s) for s in world.scenes(256)]) / 256
            table.append(_row(f"one scene and its five captions, {name}", spent, f"{spent * 1e6:.0f} us"))
    finally:
        torch.set_num_threads(threads)
    return table


def _row(what: str, seconds: float, note: str) -> dict:
    return {"what": what, "ours_ms": seconds * 1e3, "peer": None, "peer_ms": None, "note": note}
