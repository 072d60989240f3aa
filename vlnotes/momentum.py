"""What momentum contrast keeps between steps: a teacher that follows slowly, and a queue of its features."""

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlnotes.validate import check_device, check_features, check_finite, check_float, check_fraction


def momentum_copy(module: nn.Module) -> nn.Module:
    """A teacher that starts as an exact copy of the student and never receives a gradient.

    Args:
        module: the student; it stays as it is.

    Returns:
        A deep copy in the same training or evaluation mode, every parameter with `requires_grad` False.

    Raises:
        TypeError: not an nn.Module.

    Equation: MoCo (He et al. 2020), section 3.2.
    Notebook: 03_moco, section 2.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def momentum_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Let every teacher parameter follow the student's: an exponential moving average, in place.

    teacher ← momentum · teacher + (1 - momentum) · student

    Only parameters move. Buffers stay the teacher's own, as in MoCo: its batch norm counts its own batches.

    Args:
        teacher: made by `momentum_copy`.
        student: a module with the same parameters, by name and shape.
        momentum: in [0, 1]; 1 freezes the teacher, 0 copies the student, MoCo takes 0.999.

    Raises:
        TypeError: momentum is not a number.
        ValueError: momentum is outside [0, 1], the two are one module, or they differ in names or shapes.

    Equation: MoCo (He et al. 2020), equation 2.
    Notebook: 03_moco, section 2.
    """
    check_fraction(momentum, "momentum")
    if teacher is student:
        raise ValueError("teacher and student are one and the same module; make the teacher with momentum_copy")
    old, new = dict(teacher.named_parameters()), dict(student.named_parameters())
    if old.keys() != new.keys():
        raise ValueError(
            "teacher and student: expected the same parameter names, "
            f"got only in the teacher {sorted(old.keys() - new.keys())[:3]}, "
            f"only in the student {sorted(new.keys() - old.keys())[:3]} (three at most are listed)"
        )
    for name in old:  # all shapes before any change, so that a refused update changes nothing
        if old[name].shape != new[name].shape:
            raise ValueError(
                f"parameter {name}: expected one shape in both, "
                f"got {tuple(old[name].shape)} in the teacher and {tuple(new[name].shape)} in the student"
            )
    for name, parameter in old.items():
        parameter.lerp_(new[name].to(parameter), 1 - momentum)


class FeatureQueue(nn.Module):
    """The last K teacher features, kept as negatives: first in, first out.

    Until K features have been pushed, the rest are random unit vectors, so that a loss always sees K rows.
    All state is in the state dict; a resumed run goes on with the same negatives. `features` is (K, D), `ids`
    (K,) int64 with -1 where unknown, `filled` counts the rows that were pushed, `pointer` is the row written
    next.

    Args:
        size: K, how many rows it keeps.
        dim: D, their width.
        generator: CPU generator of the random rows; None takes a fixed seed of its own.

    Raises:
        TypeError: size or dim is not an int.
        ValueError: size or dim is below 1.

    Equation: MoCo (He et al. 2020), algorithm 1.
    Notebook: 03_moco, section 3.
    """

    def __init__(self, size: int, dim: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        noise = torch.randn(size, dim, generator=generator)
        self.register_buffer("features", nn.functional.normalize(noise, dim=1))  # (K, D)
        self.register_buffer("ids", torch.full((size,), -1))  # (K,)
        self.register_buffer("pointer", torch.tensor(0))
        self.register_buffer("pushed", torch.tensor(0))

    @property
    def filled(self) -> int:
        """How many of the K rows hold a feature that was pushed."""
        return int(self.pushed)

    @torch.no_grad()
    def push(self, features: Tensor, ids: Tensor | None = None) -> None:
        """Write new features over the oldest ones. Any number of rows fits; of more than K the last K stay.

        Args:
            features: (B, D) float; detached here.
            ids: (B,) whole numbers that say which sample a row came from, or None for unknown.

        Raises:
            TypeError: features are not float, ids not whole numbers.
            ValueError: features or ids of another shape or device, NaN or infinity; nothing is written then.
        """
        size, dim = self.features.shape
        check_features(features, "features", width=dim)
        check_device(features, self.features, ("features", "the queue"))
        check_finite(features.float().sum(), "push", features=features)
        if ids is None:
            ids = torch.full((len(features),), -1)
        kind = getattr(ids, "dtype", type(ids).__name__)
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or kind == torch.bool:
            raise TypeError(f"ids: expected a tensor of whole numbers, got {kind}")
        if ids.shape != (len(features),):
            raise ValueError(f"ids: expected one a row, shape {(len(features),)}, got {tuple(ids.shape)}")
        features, ids = features[-size:], ids[-size:]
        start = int(self.pointer)
        rows = (start + torch.arange(len(features), device=self.features.device)) % size  # wraps at the end
        self.features[rows] = features.to(self.features)
        self.ids[rows] = ids.to(self.ids)
        self.pointer.fill_((start + len(features)) % size)
        self.pushed.fill_(min(size, self.filled + len(features)))

    def extra_repr(self) -> str:
        return "{}, {}".format(*self.features.shape)


def gather_with_grad(tensor: Tensor) -> Tensor:
    """All processes' rows below each other in rank order, each row still attached to where it was made.

    A plain all-gather cuts the graph: the loss is right, the gradient is not. Here backward adds up what
    every process asks of a row and hands it to its owner. Averaged over processes, as DistributedDataParallel
    does, the gradient is that of the whole batch on one machine.

    Args:
        tensor: (B, D) float, the same shape in every process.

    Returns:
        (processes · B, D); the tensor itself where no process group is running.

    Raises:
        TypeError: not a float tensor.
        ValueError: the processes hold different shapes.
    """
    check_float(tensor, "tensor")
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    mine = torch.tensor(tensor.shape, device=tensor.device)
    shapes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, mine)
    shapes = [tuple(shape.tolist()) for shape in shapes]
    if len(set(shapes)) > 1:
        raise ValueError(f"gather_with_grad: expected one shape in every process, got {shapes}; drop_last helps")
    return _Gather.apply(tensor)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)  # sum over processes
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]
