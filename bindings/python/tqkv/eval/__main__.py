# SPDX-License-Identifier: Apache-2.0
"""tqkv-eval: judges caches of codes on a model, or packs a model as a checkpoint."""
import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads leave the cores to others

from .. import __version__  # noqa: E402
from ..errors import Error  # noqa: E402


def parser():
    top = argparse.ArgumentParser(prog="tqkv-eval", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    release = commands.add_parser(
        "release", help="recall, text, drift, formats, speed: report.json, report.md, report.html",
        description="Paired runs of a model with its own cache and with TurboCaches. Exit status 0: all "
        "controls and gates hold; 1: one does not, or nothing was judged; 2: wrong arguments. A run that was "
        "ended goes on when it is started again.")
    release.add_argument("--model", action="append", help="constructed, random, a folder or hub name; may be "
                         "given several times; default: constructed, and the test model of "
                         "TQKV_TESTLM or beside the checkout")
    release.add_argument("--out", required=True, help="folder of the report")
    size = release.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="minutes on two cores (default)")
    size.add_argument("--full", action="store_true", help="contexts up to 128k, more trials and texts")
    release.add_argument("--contexts", type=int, default=None, metavar="N",
                         help="longest context; default 2048 (constructed: 4096), with --full 131072")
    release.add_argument("--trials", type=int, default=None, help="of a kind; default 1, with --full 4")
    release.add_argument("--profile", action="append", help="a cache to compare: retrieval-safe, "
                         "turboquant-s3, k3v2+window=128, b2+centres+skip=auto ..; may be repeated")
    release.add_argument("--gate", default=None, help="profile whose losses decide; default retrieval-safe")
    release.add_argument("--text", default="", help="file whose text is scored; default the model's own")
    release.add_argument("--seed", type=int, default=0)
    release.add_argument("--device", default="cpu")
    release.add_argument("--dtype", default=None, help="float32, float16, bfloat16")
    release.add_argument("--style", default=None, help="wording of prompts: sentence, brackets")
    release.add_argument("--threads", type=int, default=None, help="of torch")
    release.add_argument("--only", default="", help="kinds of jobs, with commas: task, grid, text, drift, "
                         "rivals, speed; or tasks: needle, pairs ..")
    release.add_argument("--fresh", action="store_true", help="forget what is in the folder")
    pack = commands.add_parser("pack", help="write a model as a Transformers checkpoint")
    pack.add_argument("model", help="constructed, random, or a folder of int8 rows")
    pack.add_argument("folder")
    return top


def main(argv=None) -> int:
    arguments = parser().parse_args(argv)
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        print(f"tqkv-eval: needs torch and transformers 5.17 or later ({error})", file=sys.stderr)
        return 2
    try:
        if arguments.command == "pack":
            from ._models import load, pack
            pack(load(arguments.model), arguments.folder)
            return 0
        from ._release import release
        return release(arguments)
    except (Error, ValueError, OSError) as error:
        print(f"tqkv-eval {__version__}: {error}", file=sys.stderr)
        return 2


def models(given):
    """The models that a run without --model judges: a checkout may have the project's test model beside
    it."""
    if given:
        return given
    beside = Path(__file__).resolve().parents[4].parent / "shared" / "testlm"
    folder = Path(os.environ.get("TQKV_TESTLM") or beside)
    return ["constructed", *([str(folder)] if (folder / "weights.safetensors").exists() else [])]


if __name__ == "__main__":
    sys.exit(main())
