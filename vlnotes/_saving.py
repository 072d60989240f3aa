"""Models as a folder with weights.safetensors and model.json: written and read alike for every method."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn


def save_model(
    model: nn.Module, name: str, folder: str | Path, record: dict, state: dict[str, Tensor] | None = None
) -> Path:
    """Write weights.safetensors and model.json (which model, how to build it, and the record).

    Args:
        model: `model.built` holds the arguments of `tiny`.
        name: of the class, such as "CLIP"; model.json has it in lower case.
        folder: made if it is not there.
        record: JSON values to keep beside the weights.
        state: what to write; None for the whole state dict.

    Returns:
        The folder.

    Raises:
        ValueError: a model without `built`, which `load_model` could not build again.
    """
    from safetensors.torch import save_file

    if not hasattr(model, "built"):
        raise ValueError(f"save works on models from {name}.tiny; for others, save state_dict() yourself")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if state is None else state
    weights = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    save_file(weights, folder / "weights.safetensors")
    told = {"model": name.lower(), "built": model.built, **record}
    (folder / "model.json").write_text(json.dumps(told, indent=1) + "\n")
    return folder


def load_model(
    cls,
    name: str,
    folder: str | Path,
    complete: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> nn.Module:
    """Read back what `save_model` wrote, in eval mode on the CPU.

    Args:
        cls: has `tiny`.
        name: as given to `save_model`.
        folder: with weights.safetensors and model.json.
        complete: makes a whole state dict of what was written; None where that is whole.

    Returns:
        The model.

    Raises:
        ValueError: the folder lacks one of the two files, or they are damaged or of another model.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    for file in ("model.json", "weights.safetensors"):
        if not (folder / file).is_file():
            raise ValueError(f"{folder} has no {file}; expected a folder that {name}.save wrote")
    try:
        record = json.loads((folder / "model.json").read_text())
        kind = record.get("model")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'model.json'} is not what {name}.save wrote: {error}") from error
    if kind != name.lower():
        raise ValueError(f"{folder / 'model.json'} describes a {kind!r}, not a {name.lower()!r}")
    try:
        model = cls.tiny(**record["built"])
        tensors = load_file(folder / "weights.safetensors")
        model.load_state_dict(tensors if complete is None else complete(model, tensors))
    except Exception as error:  # safetensors, torch and a missing key each raise their own kind
        raise ValueError(f"{folder} does not hold a whole {name} as {name}.save wrote it: {error}") from error
    return model.eval()
