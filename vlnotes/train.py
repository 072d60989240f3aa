"""One training loop, short enough to read in one sitting; every notebook and every command uses this one.

A batch is a function of the step: `batches(step)` returns the dict that the model's `forward` takes. So the order of
the data is no hidden state, a run that was killed goes on with exactly the batches it would have seen, and the next
batches can be made ahead by worker threads.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from vlnotes._batches import Batch, epoch_indices, pair_batches, trim_padding

__all__ = [
    "epoch_indices",
    "learning_rate_at",
    "pair_batches",
    "pick_device",
    "pick_precision",
    "train",
    "trim_padding",
]


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device to work on: the one named, else CUDA, else Apple's MPS, else the CPU.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", a torch.device, or None to choose.

    Returns:
        A torch.device that exists on this machine.

    Raises:
        ValueError: the named device is not there.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is none that torch knows; expected cpu, cuda, cuda:1 or mps") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False) or (device.index or 0) >= max(1, torch.cuda.device_count()):
        have = ", ".join(name for name, ok in there.items() if ok)
        raise ValueError(f"device {device} is not on this machine; it has: {have}")
    return device


def pick_precision(device: torch.device, measure: bool = False) -> str:
    """Whether to train in "bf16" or "fp32" here: bf16 on CUDA, fp32 elsewhere.

    CPUs with matrix units for bfloat16 run convolutions two to three times as fast in it. But beside another busy
    program the same convolutions can become thirty times slower, since their threads wait for each other by spinning.
    So on a CPU bf16 is something to ask for, after measuring on a quiet machine.

    Args:
        device: where the training will run.
        measure: on a CPU, time a small convolution both ways (about 0.1 s), and say bf16 where it wins clearly.

    Returns:
        "bf16" or "fp32".
    """
    if device.type == "cuda":
        # what is only emulated (a T4, a V100) is slower than float32
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu" or not measure:
        return "fp32"
    weight = torch.ones(64, 64, 3, 3, requires_grad=True)
    x = torch.ones(32, 64, 16, 16).to(memory_format=torch.channels_last)
    seconds = {False: math.inf, True: math.inf}
    for _ in range(10):
        for bf16 in seconds:
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                torch.nn.functional.conv2d(x, weight, padding=1).float().sum().backward()
            seconds[bf16] = min(seconds[bf16], time.perf_counter() - start)
    return "bf16" if seconds[True] < 0.7 * seconds[False] else "fp32"


def learning_rate_at(progress: float, peak: float, warmup: float = 0.1) -> float:
    """Linear warm-up to `peak`, then half a cosine down to zero.

    Args:
        progress: 0 (start) to 1 (end).
        peak: the largest learning rate.
        warmup: share of the run that is spent warming up.

    Returns:
        The learning rate at that point of the run.
    """
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def _ahead(batches: Callable[[int], Batch], steps: range, workers: int) -> Iterator[Batch]:
    """The batches of `steps` in order; `workers` threads make the next ones while the model is busy."""
    if workers == 0:
        yield from map(batches, steps)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(batches, step) for step in steps[: 2 * workers]]
        for step in steps:
            batch = waiting.pop(0).result()
            if step + 2 * workers < steps.stop:
                waiting.append(pool.submit(batches, step + 2 * workers))
            yield batch


def train(
    model: nn.Module,
    batches: Callable[[int], Batch],
    *,
    steps: int | None = None,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    clip_gradient: float | None = 1.0,
    minutes: float | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    settings: dict | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    workers: int = 0,
    progress: bool = True,
):
    """Train with AdamW, a warm-up and a cosine; show it, save it, and go on after a kill as if nothing had been.

    Args:
        model: `model(batch)` returns a dict of scalar losses with the total under "loss".
        batches: step -> batch (see `pair_batches`).
        steps: how many steps the whole run has; None for as many as fit the `minutes`. With several processes every
            one takes batches of its own; negatives stay within a process unless the model gathers them.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW, on weight matrices; biases, norms and temperatures are left alone.
        warmup: share of the run that warms up.
        clip_gradient: largest norm of the gradient, or None.
        minutes: a time budget; the learning rate then falls with the time, and the run ends in time.
        device: see `pick_device`.
        precision: "bf16", "fp32" or None for what `pick_precision` says.
        seed: of whatever the model draws (dropout, hard negatives).
        checkpoint: a .safetensors file, written every `checkpoint_seconds` and at the end; a run that finds it goes on
            from there, and ends with the same numbers as one that was never stopped.
        settings: whatever else makes this run this run (batch size, data ...); a checkpoint with others is refused.
        evaluate: called with the model in eval mode every `evaluate_every` steps and at the end; its numbers join the
            history.
        workers: threads that make batches ahead; 0 for data in memory.
        progress: show a bar.

    Returns:
        A pandas DataFrame, one row a step: step, the losses, learning_rate, seconds; `history.attrs` holds the device,
        the precision and the seed. The model is trained in place and ends in eval mode.

    Raises:
        ValueError: a loss that is not finite (with the step), a model without "loss", a checkpoint of another run.
    """
    import pandas as pd
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from tqdm import tqdm

    if steps is None and minutes is None:
        raise ValueError("say how long to train: steps, minutes, or both")
    if (steps is not None and steps < 1) or (minutes is not None and not minutes > 0):
        raise ValueError(f"steps must be at least 1 and minutes positive, not {steps} and {minutes}")
    device = pick_device(device)
    precision = precision or pick_precision(device)
    if precision not in ("bf16", "fp32"):
        raise ValueError(f"precision must be 'bf16' or 'fp32', not {precision!r}")
    AcceleratorState._reset_state(reset_partial_state=True)  # a notebook trains more than once
    # Precision and placement are ours: Accelerate would patch the model's forward for good, and knows no cuda:1.
    accelerator = Accelerator(mixed_precision="no", cpu=device.type == "cpu", device_placement=False)
    ranks, rank = accelerator.num_processes, accelerator.process_index
    device = accelerator.device if ranks > 1 else device

    model.to(device)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    spared = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    run = {"steps": steps, "learning_rate": learning_rate, "weight_decay": weight_decay, "seed": seed}
    run |= {"warmup": warmup, "clip_gradient": clip_gradient, "precision": precision, **(settings or {})}
    history, start, before = [], 0, 0.0
    with torch.random.fork_rng():  # the caller's random state is left as it was
        torch.manual_seed(seed)
        if checkpoint is not None and Path(checkpoint).exists():
            start, history, before = _load_checkpoint(Path(checkpoint), model, optimizer, run)
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        main = accelerator.is_main_process

        began = last_saved = time.perf_counter()
        bar = tqdm(
            total=steps,
            initial=start,
            disable=not (progress and main),
            file=sys.stdout,
            ncols=100,
            mininterval=0.5,
            unit="step",
        )
        model.train()
        own = batches if ranks == 1 else lambda step: batches(step * ranks + rank)  # every process its own
        for step, batch in enumerate(_ahead(own, range(start, steps or 10**9), workers), start=start):
            elapsed = before + time.perf_counter() - began
            share = max((step + 0.5) / steps if steps else 0.0, elapsed / (60 * minutes) if minutes else 0.0)
            if ranks > 1:  # one clock for all, or they part and wait for each other for ever
                share = float(accelerator.reduce(torch.tensor(share, device=device), "mean"))
            if share >= 1 and history:  # a tiny budget still makes one step
                break
            rate = learning_rate_at(share, learning_rate, warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                losses = wrapped(batch)
            if not isinstance(losses, dict) or "loss" not in losses:
                seen = sorted(losses) if isinstance(losses, dict) else type(losses).__name__
                raise ValueError(f"the model's forward must return a dict with 'loss'; it has {seen}")
            accelerator.backward(losses["loss"])
            norm = accelerator.clip_grad_norm_(model.parameters(), math.inf if clip_gradient is None else clip_gradient)
            row = {"step": step, **{name: float(torch.as_tensor(value).detach()) for name, value in losses.items()}}
            for name, number in (("loss", row["loss"]), ("norm of the gradient", float(norm))):
                if not math.isfinite(number):  # before the step: the weights stay those of the last good one
                    raise ValueError(f"the {name} became {number} at step {step}: {row}; try a smaller learning_rate")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            row |= {"learning_rate": rate, "seconds": before + time.perf_counter() - began}
            if evaluate is not None and evaluate_every and (step + 1) % evaluate_every == 0 and step + 1 != steps:
                row |= _evaluated(model, evaluate)
            history.append(row)
            bar.update()
            spent = "" if steps else f", {share:.0%} of {minutes:g} min"
            bar.set_postfix_str(f"loss {row['loss']:.3f}{spent}", refresh=False)
            if checkpoint is not None and main and time.perf_counter() - last_saved > checkpoint_seconds:
                _save_checkpoint(Path(checkpoint), model, optimizer, history, run, row["seconds"])
                last_saved = time.perf_counter()
    bar.close()
    if evaluate is not None and history:
        history[-1] |= _evaluated(model, evaluate)
    if checkpoint is not None and main and history:
        _save_checkpoint(Path(checkpoint), model, optimizer, history, run, history[-1]["seconds"])
    model.eval()
    table = pd.DataFrame(history)
    table.attrs.update(run, device=device.type, precision=precision, threads=torch.get_num_threads())
    return table


def _evaluated(model: nn.Module, evaluate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        numbers = evaluate(model)
    model.train()
    return numbers


def _save_checkpoint(path: Path, model, optimizer, history: list[dict], run: dict, seconds: float) -> None:
    """One safetensors file with the weights, AdamW's moments and the random state; whole or not at all."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    meta = {"run": json.dumps(run), "history": json.dumps(history), "seconds": str(seconds)}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    save_file(tensors, unfinished, metadata=meta)
    os.replace(unfinished, path)


def _load_checkpoint(path: Path, model, optimizer, run: dict) -> tuple[int, list[dict], float]:
    """Put everything back; returns the next step, the history so far and the seconds spent."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        theirs = json.loads(meta["run"])
    except Exception as error:  # safetensors raises its own kind; a file without our notes gives TypeError or KeyError
        raise ValueError(f"{path} is no checkpoint of train ({error}); delete it or name another") from error
    if theirs != run:
        differ = {k: (theirs.get(k), run.get(k)) for k in run if theirs.get(k) != run.get(k)}
        raise ValueError(f"{path} belongs to another run; (there, here): {differ}. Name another file or delete it.")
    weights = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} belongs to another model: {error}. Name another file or delete it.") from error
    state: dict[int, dict] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    history = json.loads(meta["history"])
    return history[-1]["step"] + 1, history, float(meta["seconds"])
