"""`python tests/benchmarks`: every file here that has `rows()`, one table.

Times are medians of interleaved runs on one thread. Memory is the rise of the resident peak in a process of
its own, after imports and inputs.
Peers (`pip install ".[bench]"`) may be missing; their columns then stay empty and the note says so.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["OMP_NUM_THREADS"] = "1"

import importlib  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from measure import Row  # noqa: E402

HEAD = ("what", "ours ms", "peer", "peer ms", "ratio", "memory ours/peer, MB", "note")


def cells(row: Row) -> tuple[str, ...]:
    def number(value, digits=1):
        return "-" if value is None else f"{value:,.{digits}f}"

    ratio = row.ours_ms / row.peer_ms if row.ours_ms and row.peer_ms else None
    memory = f"{number(row.ours_mb, 0)} / {number(row.peer_mb, 0)}"
    return (
        row.what,
        number(row.ours_ms),
        row.peer or "-",
        number(row.peer_ms),
        number(ratio, 2),
        memory,
        row.note,
    )


def main() -> None:
    torch.set_num_threads(1)
    here = Path(__file__).parent
    names = sys.argv[1:] or sorted(path.stem for path in here.glob("*.py") if path.stem != "__main__")
    table = [HEAD]
    for name in names:
        module = importlib.import_module(name)
        for row in module.rows() if hasattr(module, "rows") else ():
            row = row if isinstance(row, Row) else Row(**row)  # a plain dict of the same names will do
            print(f"measured {row.what}", file=sys.stderr)
            table.append(cells(row))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:  # words to the left, numbers to the right
        pads = zip(line, widths, ("<", ">", "<", ">", ">", ">", "<"), strict=True)
        print("  ".join(f"{cell:{side}{width}}" for cell, width, side in pads).rstrip())


if __name__ == "__main__":
    main()
