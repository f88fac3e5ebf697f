# SPDX-License-Identifier: Apache-2.0
"""python -m tqkv.validate: the command."""

import argparse
import os
import shutil
import sys
import tempfile
import time

DESCRIPTION = """\
Measures the claims of TurboQuant's paper, of its other implementations and of tqkv: claim, what the source
says, what is measured, verdict."""
EPILOG = """\
verdicts: pass, FAIL for claims that tqkv stands for; confirmed, refuted for those of others; skipped with the
reason. exit status: 0 no FAIL (others' claims may be refuted); 1 a claim that tqkv stands for fails; 2 wrong
arguments, or an output that cannot be written; 3 the library or NumPy is missing, or the library refuses."""


class Progress:
    """One line on stderr that tells what runs; where stderr is no terminal, a line for each section."""
    def __init__(self, quiet):
        self.quiet, self.start, self.section = quiet, time.monotonic(), ""
        self.line = sys.stderr.isatty()

    def tell(self, done, of, section, what):
        if self.quiet or (not self.line and section == self.section):
            return
        self.section = section
        head = f"[{done + 1}/{of} {time.monotonic() - self.start:5.0f} s] {section}"
        if self.line:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r" + f"{head}: {what}"[:width].ljust(width))
        else:
            sys.stderr.write(head + "\n")
        sys.stderr.flush()

    def close(self):
        if self.line and not self.quiet:
            sys.stderr.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")


def parser(sections):
    names = ", ".join(sections)
    p = argparse.ArgumentParser(
        prog="tqkv validate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--quick", action="store_true", help="smaller samples: half a minute on two cores")
    p.add_argument("--seed", type=int, default=0, help="of all random numbers (0)")
    p.add_argument("--only", metavar="LIST", help=f"sections, with commas: {names}")
    p.add_argument("--device", default="cpu", metavar="DEVICE",
                   help="cuda, cuda:N: attention and the rotation on a GPU too (needs torch); cpu")
    p.add_argument("--json", metavar="FILE", help="rows with all figures")
    p.add_argument("--markdown", metavar="FILE", help="the table in Markdown")
    p.add_argument("--html", metavar="FILE", help="one page with plots (needs matplotlib for those)")
    p.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return p


def check_outputs(p, paths):
    """Before the work: what cannot be written is said now."""
    for option, path in paths.items():
        folder = os.path.dirname(os.path.abspath(path))
        if os.path.isdir(path):
            p.error(f"{option} = {path!r}: is a folder")
        if not os.path.isdir(folder):
            p.error(f"{option} = {path!r}: there is no folder {folder!r}")
        if not os.access(folder, os.W_OK):
            p.error(f"{option} = {path!r}: the folder {folder!r} cannot be written to")
    if len({os.path.abspath(path) for path in paths.values()}) < len(paths):
        p.error("two outputs have the same name")


def write_whole(path, text):
    """The file is there whole, or as it was."""
    folder, name = os.path.split(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def drawn(rows):
    """SVG of the plots, or why there are none."""
    try:
        from .plots import draw

        return draw(rows)
    except ImportError as error:
        why = f"matplotlib is not installed for {sys.executable} ({error})"
        print(f"tqkv validate: --html without plots: {why}", file=sys.stderr)
        return why


def main(arguments=None):
    # Matrices are small: more threads of BLAS would wait for one another, and for other programs.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    try:
        import tqkv
        from . import report, run
    except ImportError as error:
        print(f"tqkv validate: needs NumPy for {sys.executable}: {error}", file=sys.stderr)
        return 3
    names = [name for name, _, _ in run.SECTIONS]
    p = parser(names)
    options = p.parse_args(arguments)
    chosen = options.only.split(",") if options.only is not None else None
    for name in chosen or []:
        if name not in names:
            p.error(f"--only: {name!r} is no section; there are {', '.join(names)}")
    if options.seed < 0:
        p.error(f"--seed = {options.seed}: must be 0 or more")
    outputs = {
        f"--{kind}": getattr(options, kind)
        for kind in ("json", "markdown", "html") if getattr(options, kind) is not None
    }
    check_outputs(p, outputs)
    progress = Progress(options.quiet)
    try:
        build = tqkv.build_info()
        rows, seconds = run.validate(chosen, options.quick, options.seed, tell=progress.tell,
                                     device=None if options.device == "cpu" else options.device)
    except tqkv.Error as error:
        progress.close()
        print(f"tqkv validate: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        progress.close()
        print("tqkv validate: interrupted, nothing written", file=sys.stderr)
        return 130
    progress.close()
    result = report.Result(rows, seconds, options.seed, options.quick, build)
    return write(result, outputs, report) or int(result.failed)


def write(result, outputs, report):
    """All outputs, the terminal's last: 0, or 2 for one that cannot be written."""
    makers = {
        "--json": report.as_json,
        "--markdown": report.markdown,
        "--html": lambda result: report.page(result, drawn(result.rows)),
    }
    for option, path in outputs.items():
        try:
            write_whole(path, makers[option](result))
        except OSError as error:
            print(f"tqkv validate: {option} = {path!r}: {error.strerror}", file=sys.stderr)
            return 2
    width = shutil.get_terminal_size((120, 24)).columns
    try:
        sys.stdout.write(report.terminal(result, width, sys.stdout.isatty()))
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would be tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"tqkv validate: standard output: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
