# SPDX-License-Identifier: Apache-2.0
"""A fault compiled into one program: what includes the changed file is compiled again and linked with the
objects of the unchanged sources (build/test, as tests/run.sh builds it). For faults that cannot be chosen at
run time (canaries.py); run.py has a build that holds all its mutants. Standard library only.
"""
import collections
import json
import os
import shlex
import shutil
import subprocess
import sys

from mutants import ROOT

BUILD, BENCHES = os.path.join(ROOT, "build/test"), os.path.join(ROOT, "build/mutation")
LIMIT_SECONDS = 600  # a fault that runs longer is seen as well; programs take 10 at most, if they are alone


def run(command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


class Base:
    """Objects and programs of the unchanged sources, and how each is made."""

    def __init__(self, jobs, programs):
        command = ["cmake", "--preset", "dev"]
        if shutil.which("ccache"):
            command += [f"-DCMAKE_{language}_COMPILER_LAUNCHER=ccache" for language in ("C", "CXX")]
        names = list(dict.fromkeys(program[0] for program in programs))
        for step in (command, ["cmake", "--build", BUILD, "-j", str(jobs), "--target", *names]):
            done = run(step, cwd=ROOT)
            if done.returncode:
                sys.exit(done.stdout[-3000:] + "\ncanaries.py: the unchanged sources do not build")
        self.compiles = {}  # object: (command, source)
        with open(os.path.join(BUILD, "compile_commands.json"), encoding="utf-8") as file:
            for each in json.load(file):
                words = [word for word in shlex.split(each["command"]) if not word.endswith("ccache")]
                self.compiles[words[words.index("-o") + 1]] = words, each["file"]
        self.links = {name: self.link_of(name) for name in names}
        self.links["libtqkv.so"] = self.link_of("libtqkv.so")
        self.dependents = collections.defaultdict(set)  # source or header: objects
        made = None
        for line in run(["ninja", "-C", BUILD, "-t", "deps"], check=True).stdout.split("\n"):
            if line.startswith("    "):
                path = os.path.relpath(os.path.join(BUILD, line.strip()), ROOT)
                self.dependents[path].add(made)
            elif ": #deps" in line:
                made = line.split(":")[0]
        for program in programs:
            if not passes([os.path.join(BUILD, "tests", program[0]), *program[1:]]):
                sys.exit(f"canaries.py: {' '.join(program)} fails on the unchanged sources")

    @staticmethod
    def link_of(target):
        last = [line for line in run(["ninja", "-C", BUILD, "-t", "commands", target],
                                     check=True).stdout.split("\n") if " -o " in line and ".o " in line][-1]
        return [word for word in shlex.split(last) if word not in (":", "&&")]


def passes(command, **more):
    try:
        return run(command, timeout=LIMIT_SECONDS,
                   env=dict(os.environ, TQKV_TEST_QUICK="1", **more)).returncode == 0
    except subprocess.TimeoutExpired:
        return False


class Bench:
    """A folder where one fault at a time is made and tried."""

    def __init__(self, base, number):
        self.base, self.folder = base, os.path.join(BENCHES, f"bench{number}")
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder, _, names in os.walk(os.path.join(ROOT, "src")):  # sources find their neighbours here
            here = os.path.join(self.folder, os.path.relpath(folder, ROOT))
            os.makedirs(here)
            for name in names:
                os.symlink(os.path.join(folder, name), os.path.join(here, name))

    def judge(self, name, text, programs):
        """The program that sees it, "" if none does, None if it does not compile."""
        path, made = os.path.join(self.folder, name), {}
        os.remove(path)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        try:
            for program in programs:
                library = program[0] == "capi_tests"  # the only one that does not hold the objects
                target = self.link("libtqkv.so" if library else program[0], name, made)
                if target is None:
                    return None
                binary = os.path.join(BUILD, "tests", program[0]) if library else target
                if not passes([binary, *program[1:]], **({"LD_PRELOAD": target} if library else {})):
                    return program[0]
            return ""
        finally:
            os.remove(path)
            os.symlink(os.path.join(ROOT, name), path)

    def link(self, target, name, made):
        """The program or library with the fault in it; None if something does not compile."""
        words = self.base.links[target]
        for word in words:
            if word in self.base.dependents[name] and word not in made:
                made[word] = self.compile(word, len(made))
                if made[word] is None:
                    return None
        output = os.path.join(self.folder, "program")
        at = words.index("-o")
        words = [made.get(word, word) for word in words[:at]] + ["-o", output] + \
                [made.get(word, word) for word in words[at + 2:]]
        return output if run(words, cwd=BUILD).returncode == 0 else None

    def compile(self, made, number):
        words, source = self.base.compiles[made]
        inside = os.path.join(ROOT, "src") + os.sep
        if source.startswith(inside):
            source = os.path.join(self.folder, os.path.relpath(source, ROOT))
        output = os.path.join(self.folder, f"{number}.o")
        words = [word.replace(f"-I{ROOT}/src", f"-I{self.folder}/src") for word in words]
        words = words[:words.index("-o")] + ["-w", "-o", output, "-c", source]
        return output if run(words, cwd=BUILD).returncode == 0 else None
