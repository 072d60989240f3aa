"""Run the whole course headless: `python tests/run_notebooks.py [names] [--write] [--records] [--jobs 2]`.

One line a notebook. The executed copies are left in `executed/`. A notebook that fails does not stop the
others; the exit code is the number of those that failed. Numbers outside their records fail a cell
(VLNOTES_RECORDS=strict). With `--jobs 2` two run at a time, one thread each: on two cores the course is through
sooner, but a single notebook takes longer, so no time is stored then.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbformat
import notebook_tools as tools
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def main(arguments: list[str] | None = None) -> int:
    """Run the notebooks and report.

    Args:
        arguments: of the command line; None takes those of the process.

    Returns:
        How many notebooks failed; 1 where none was found.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of notebook names, such as 00 02; all without")
    parser.add_argument("--write", action="store_true", help="store outputs and run time in the notebooks themselves")
    parser.add_argument("--records", action="store_true", help="store the measured numbers as the expected ones")
    parser.add_argument("--time", action="store_true", help="store only the run time, as on a second kind of machine")
    parser.add_argument("--slides", action="store_true", help="only mark what is a slide of its own; nothing is run")
    parser.add_argument(
        "--jobs", type=int, default=1, help="notebooks that run at the same time; 1 where times are stored"
    )
    parser.add_argument("--timeout", type=int, default=600, help="seconds a cell may take")
    parser.add_argument("--out", type=Path, default=tools.COURSE / "executed", help="folder of the executed copies")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; expected 1 or more")
    if options.jobs > 1 and (options.write or options.time or options.records):
        parser.error("--jobs is for a run that stores nothing; with --write, --records or --time leave it out")

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a debugger's note on stderr, for nobody
    if options.records:
        os.environ["VLNOTES_RECORDS"] = "write"
    if options.write:  # real pictures are looked at, never stored
        os.environ.pop("VLNOTES_REALDATA", None)
    os.environ.setdefault("VLNOTES_RECORDS", "strict")

    found = tools.paths(options.names)
    if not found:
        print(f"no notebook in {tools.NOTEBOOKS} begins with {' or '.join(options.names) or 'a number'}")
        return 1
    if options.slides:
        for path in found:
            notebook = nbformat.read(path, as_version=4)
            tools.set_slides(notebook)
            nbformat.write(notebook, path)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    kind, words = tools.machine()
    print(f"{len(found)} notebooks on {words}; copies in {options.out.name}/", flush=True)
    began = time.perf_counter()
    failed, names = [], []
    for path, notebook, seconds, trouble in results(found, options.timeout, options.jobs):
        if trouble is None:
            tools.tidy(notebook)
            tools.set_slides(notebook)
            if options.write or options.time:
                tools.set_time(notebook, seconds, kind, words)
        nbformat.write(notebook, options.out / path.name)
        names += tools.recorded_names(notebook)
        name = f"{path.stem:28s} " if options.jobs > 1 else ""  # alone, it stands there since the notebook began
        print(f"{name}{seconds:6.1f} s  {'ok' if trouble is None else 'FAILED ' + trouble}", flush=True)
        if trouble is not None:
            failed.append(path.stem)
        elif options.write:
            nbformat.write(notebook, path)
        elif options.time:
            stored = nbformat.read(path, as_version=4)
            tools.set_time(stored, seconds, kind, words)
            nbformat.write(stored, path)
    if options.records and not options.names and not failed:
        from vlnotes import records

        for name in records.keep_only(names):
            print(f"record {name} is made by no notebook any more: dropped")
    seconds = time.perf_counter() - began
    print(f"{len(found) - len(failed)} of {len(found)} notebooks ran in {seconds:.0f} s" + _list(failed))
    if (options.write or options.records) and not failed:
        print("now `make tables` brings the table of graduations and the quoted numbers up to date")
    return len(failed)


Result = tuple[Path, nbformat.NotebookNode, float, str | None]  # what `results` says of a notebook


def results(paths: list[Path], timeout: int, jobs: int) -> Iterator[Result]:
    """Run notebooks, one after the other in this process, or several at a time in processes of one thread each.

    Args:
        paths: of the notebooks.
        timeout: seconds a cell may take.
        jobs: how many at a time.

    Yields:
        As soon as it is there, in the order of the paths: the path, the executed notebook, seconds, and what `execute`
        says.
    """
    if jobs == 1:
        for path in paths:
            print(f"{path.stem:28s} ", end="", flush=True)
            yield timed(path, timeout)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(timed, paths, [timeout] * len(paths))


def timed(path: Path, timeout: int) -> Result:
    notebook = nbformat.read(path, as_version=4)
    began = time.perf_counter()
    trouble = execute(notebook, path.parent, timeout)
    return path, notebook, time.perf_counter() - began, trouble


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: int) -> str | None:
    """Run all cells in a fresh kernel of this very interpreter, whatever kernels are installed.

    Args:
        notebook: filled with outputs in place.
        folder: working directory of the kernel.
        timeout: seconds a cell may take.

    Returns:
        None, or which cell failed with a short traceback.
    """
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as place:
        spec = Path(place) / "kernels" / "python3"
        write_kernel_spec(str(spec), extra_arguments=["--log-level=40"])  # its argv[0] is sys.executable
        os.environ["JUPYTER_PATH"] = place + (os.pathsep + before if before else "")  # searched first
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        )
        try:
            client.execute()
        except CellExecutionError as error:
            return _short(notebook, error)
        except Exception as error:  # noqa: BLE001  a dead kernel or a cell out of time; the other notebooks go on
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before
    return None


def _short(notebook: nbformat.NotebookNode, error: CellExecutionError) -> str:
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                lines = ANSI.sub("", "\n".join(output.traceback)).splitlines()
                arrows = [line.strip() for line in lines if re.match(r"-+> ?\d+", line)]
                where = "".join(f"\n    {line}" for line in arrows[:1] + arrows[1:][-1:])
                return f"in cell {number}{where}\n    {output.ename}: {output.evalue.strip()[:600]}"
    return f"{error.ename}: {error.evalue}"


def _list(failed: list[str]) -> str:
    return f"; failed: {', '.join(failed)}" if failed else ""


if __name__ == "__main__":
    sys.exit(main())
