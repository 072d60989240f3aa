"""The engine of the exercise checks: it compares an answer with the right one and with known wrong ones.

An answer is a function. It runs on the same random inputs as the solution and as every wrong answer that we
know, and is named after the one it equals, in value and, where that matters, in gradient. A reader never
meets a traceback here: unsolved, broken and wrong answers all get a sentence.
"""

import dis
import inspect
import linecache
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

CLOSE = 1e-4  # float32 answers that took another way agree to about 1e-6; wrong ones differ by far more


@dataclass(frozen=True)
class Verdict:
    """What a check found: `kind` is "unsolved", "right", "broken" or "wrong"; `mistake` its name where it has
    one."""

    kind: str
    text: str
    mistake: str | None = None


@dataclass(frozen=True)
class Exercise:
    """One exercise: its solution, the wrong answers that have a name, and the inputs that tell them apart.

    Calling it with a reader's function prints a verdict.

    Args:
        solution: the right answer; its name is the exercise's, its source the text of the solution cell.
        wrong: known wrong answers; the docstring of each is the sentence that names the mistake.
        cases: a function of a generator that returns a list of argument tuples.
        by_hand: arguments small enough to follow on paper, shown where the mistake has no name.
        see_next: one sentence for those who have it right.
        gradient: whether the result must also carry the right gradient to its floating inputs.
    """

    solution: Callable
    wrong: tuple[Callable, ...]
    cases: Callable[[torch.Generator], list[tuple]]
    by_hand: tuple
    see_next: str
    gradient: bool = False

    @property
    def name(self) -> str:
        return self.solution.__name__

    @property
    def solution_text(self) -> str:
        """The source of the solution, as it stands in the notebook's folded cell."""
        return textwrap.dedent(inspect.getsource(self.solution))

    def __call__(self, answer: Callable) -> None:
        print(f"{self.name}: {self.judge(answer).text}")

    def judge(self, answer: Callable) -> Verdict:
        """Look at an answer without printing.

        Args:
            answer: the reader's function.

        Returns:
            The verdict; nothing the reader's function does raises here.
        """
        if not callable(answer):
            return Verdict(
                "broken",
                f"the check takes your function itself, not its result; got {type(answer).__name__}.",
            )
        cases = [*self.cases(torch.Generator().manual_seed(0)), self.by_hand]
        rights = [_outcome(self.solution, case, self.gradient) for case in cases]
        yours = []
        for case, right in zip(cases, rights, strict=True):
            try:
                yours.append(_outcome(answer, case, self.gradient))
            except NotImplementedError:
                return Verdict("unsolved", "not solved yet.")
            except Exception as error:  # noqa: BLE001  whatever a reader wrote is answered calmly
                return Verdict("broken", _calm(error, answer))
            if isinstance(yours[-1], str):
                return Verdict("unsolved", "not solved yet." if _is_placeholder(answer) else yours[-1])
            if yours[-1] is None:
                return Verdict("broken", "not yet: your function returns something that is no number and no tensor.")
            if yours[-1].value.shape != right.value.shape:
                shapes = tuple(yours[-1].value.shape), tuple(right.value.shape)
                named = self._named(answer, cases)
                text = f"your result has the shape {shapes[0]}, expected {shapes[1]}."
                return named or Verdict("wrong", f"not yet: {text}")
        if all(_same(mine, right) for mine, right in zip(yours, rights, strict=True)):
            return Verdict("right", f"right. {self.see_next}")
        return self._named(answer, cases) or self._unnamed(yours, rights)

    def _named(self, answer: Callable, cases: list[tuple]) -> Verdict | None:
        """The known wrong answer that this one equals on every case, if there is one."""
        try:
            yours = [_outcome(answer, case, self.gradient) for case in cases]
        except Exception:  # noqa: BLE001
            return None
        for known in self.wrong:
            theirs = [_outcome(known, case, self.gradient) for case in cases]
            if all(_same(mine, other) for mine, other in zip(yours, theirs, strict=True)):
                sentence = " ".join(inspect.getdoc(known).split())
                return Verdict("wrong", f"not yet: {sentence}", known.__name__)
        return None

    def _unnamed(self, yours: list, rights: list) -> Verdict:
        if all(_close(mine.value, right.value) for mine, right in zip(yours, rights, strict=True)):
            return Verdict(
                "wrong",
                "not yet: the value is right, but the gradient does not flow back to the inputs as it "
                "should. Look for .item(), .detach(), torch.tensor(...) or torch.no_grad() on the way.",
            )
        off = max(_distance(mine.value, right.value) for mine, right in zip(yours, rights, strict=True))
        hand, mine = rights[-1].value, yours[-1].value
        text = f"not yet: the largest difference is {off:.3g}. "
        inputs = ", ".join(_short(argument) for argument in self.by_hand)
        return Verdict(
            "wrong",
            f"{text}By hand: {self.name}({inputs}) should be {_short(hand)}, yours is {_short(mine)}.",
        )


@dataclass(frozen=True)
class _Outcome:
    value: torch.Tensor
    slopes: tuple[torch.Tensor, ...]


def _outcome(function: Callable, case: tuple, gradient: bool) -> "_Outcome | str | None":
    """Value and gradients on fresh copies of the inputs; a sentence where unsolved, None where no number
    came."""
    inputs = tuple(_copy(argument, gradient) for argument in case)
    result = function(*inputs)
    if result is ... or result is NotImplemented:
        return "not solved yet."
    if result is None:
        return "not solved yet: it returns None. If you wrote it already, is the `return` missing?"
    try:
        value = torch.as_tensor(result)
    except (TypeError, ValueError, RuntimeError):
        return None
    slopes = ()
    if gradient:
        leaves = [x for x in inputs if isinstance(x, torch.Tensor) and x.is_floating_point()]
        slopes = tuple(torch.zeros_like(x) for x in leaves)
        if value.requires_grad:
            found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
            slopes = tuple(zero if g is None else g for zero, g in zip(slopes, found, strict=True))
    return _Outcome(value.detach().cpu().double(), slopes)


def _is_placeholder(answer: Callable) -> bool:
    """Whether a function computes nothing at all: a docstring, `...` or `pass`, and no more."""
    code = getattr(answer, "__code__", None)
    nothing = {"RESUME", "NOP", "POP_TOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
    return code is not None and {step.opname for step in dis.get_instructions(code)} <= nothing


def _copy(argument: Any, gradient: bool) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.clone().requires_grad_(gradient and argument.is_floating_point())
    if isinstance(argument, list):
        return [_copy(part, gradient) for part in argument]
    return argument


def _same(a: _Outcome, b: _Outcome) -> bool:
    return _close(a.value, b.value) and all(_close(x, y) for x, y in zip(a.slopes, b.slopes, strict=True))


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return torch.allclose(a.double(), b.double(), rtol=CLOSE, atol=CLOSE, equal_nan=True)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference; infinity where one is not finite and the other is."""
    gap = torch.where(a == b, torch.zeros_like(a), (a - b).abs())
    return float(torch.nan_to_num(gap, nan=float("inf"), posinf=float("inf")).max()) if gap.numel() else 0.0


def _calm(error: Exception, answer: Callable) -> str:
    """An exception in the reader's code as one sentence with its line."""
    text = " ".join(str(error).split())
    said = (
        f"your code stops with {type(error).__name__}: {text[:200]}"
        if text
        else f"your code stops with {type(error).__name__}"
    )
    code = getattr(answer, "__code__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    if not frames:
        return f"not yet: {said}."
    last = frames[-1]
    line = (last.line or linecache.getline(last.filename, last.lineno)).strip()
    number = last.lineno - code.co_firstlineno + 1
    where = f"line {number} of {last.name}" if last.name == answer.__name__ else f"{last.name}"
    return f"not yet: {said}. It happens in {where}: `{line}`."


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bool:
            return str(value.int().tolist())
        return str(_rounded(value.tolist()))
    if isinstance(value, list):
        return "[" + ", ".join(_short(part) for part in value) + "]"
    return repr(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
