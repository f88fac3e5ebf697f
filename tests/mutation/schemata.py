# SPDX-License-Identifier: Apache-2.0
"""One build that holds every mutant, which tests reach which, and what they say of each.

build/mutation/tree is the repository with instrumented sources (mutants.py) in place of its own; a mutant
that the compiler refuses is taken out and the build goes on. Every test then runs once and notes the mutants
it reaches. A mutant is judged by those tests alone: first those that have killed most of its file for their
time, then the quickest, some of them in one process, until one fails. Assertions are on, as they are where
tests/run.sh runs these tests with sanitizers; --sanitize builds with these. --memcheck runs the same programs
under valgrind, which sees reads and writes beside what was allocated, and leaks, without another build; of
numbers never written it says nothing, as the hashes read such.
"""
import collections
import dataclasses
import fcntl
import itertools
import math
import os
import pickle
import re
import resource
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from mutants import ROOT, instrumented

BUILD = os.path.join(ROOT, "build/mutation")
TREE, HELD = os.path.join(BUILD, "tree"), os.path.join(BUILD, "held")
HERE = os.path.dirname(os.path.abspath(__file__))
CASES = os.path.join(ROOT, "tests/contract/cases.json")
# Those that are one test; the others are GoogleTest's.
SINGLE = {"run_contract": [CASES], "capi_tests": []}
PROGRAMS = ("unit_tests", "golden_encode_tests", "golden_library_tests", "capi_tests", "incident_tests",
            "oom_tests", "traffic_tests", "model_tests", "run_contract")
GTEST = ["--gtest_fail_fast", "--gtest_brief=1"]
# The work list of cuda/ holds no source of these.
LEFT_OUT = {"unit_tests": "-CudaSchedule*:CudaTuning*"}
MEMCHECK = ["valgrind", "-q", "--undef-value-errors=no", "--leak-check=full",
            "--errors-for-leak-kinds=definite", "--error-exitcode=99"]
SLOWER = 60  # times, under valgrind
MOST_WATCHED = 8  # tests of a mutant: the shortest takes half a second
MEMORY = 12 << 30  # bytes of address space: a mutant that takes all of it ends
SLOWEST = 60  # processor seconds: a test that takes longer judges no mutant


@dataclasses.dataclass
class Test:
    program: str
    name: str  # of the GoogleTest case; "" the whole program
    seconds: float = 0  # of the processor
    reached: bytes = b""


def write_if_new(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        if not os.path.islink(path) and open(path, encoding="utf-8").read() == text:
            return
        os.remove(path)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def link(path, target):
    if os.path.islink(path) and os.readlink(path) == target:
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.remove(path)
    os.symlink(target, path)


class Server:
    """A program that runs its tests whenever it is asked, in a child of its own: starting it again each time
    would take most of the time."""

    def __init__(self, schemata, program):
        requests, self.requests = os.pipe()
        self.answers, answers = os.pipe()
        self.output = tempfile.TemporaryFile("w+", errors="replace")
        command = [*MEMCHECK * schemata.memcheck, os.path.join(schemata.made, "tests", program),
                   *SINGLE.get(program, GTEST)]
        environment = dict(os.environ, TQKV_TEST_QUICK="1", TQ_MUTANT=f"serve:{requests},{answers}",
                           ASAN_OPTIONS="detect_leaks=1:strict_string_checks=1:allocator_may_return_null=1:"
                                        "hard_rss_limit_mb=4096")

        def limits():
            # AddressSanitizer and valgrind lay out more than there is.
            if not schemata.sanitize and not schemata.memcheck:
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        flags = fcntl.fcntl(self.output, fcntl.F_GETFL)
        fcntl.fcntl(self.output, fcntl.F_SETFL, flags | os.O_APPEND)
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.output,
                                        stderr=subprocess.STDOUT, cwd=schemata.made, preexec_fn=limits,
                                        env=environment, pass_fds=(requests, answers), start_new_session=True)
        os.close(requests)
        os.close(answers)

    def ask(self, line, seconds):
        """(status, microseconds), or None after so many seconds, or when the program is gone."""
        self.output.truncate(0)
        os.write(self.requests, f"{line}\n".encode())
        ready, _, _ = select.select([self.answers], [], [], seconds)
        answer = os.read(self.answers, 100).split() if ready else []
        return tuple(int(each) for each in answer) if len(answer) == 2 else None

    def text(self):
        self.output.seek(max(0, self.output.seek(0, os.SEEK_END) - 600))
        return self.output.read()

    def end(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for each in (self.requests, self.answers):
            os.close(each)
        self.output.close()


class Schemata:
    """mutants and their names: the number of a mutant is its place."""

    def __init__(self, options, log, mutants, names):
        self.mutants, self.names, self.jobs, self.log = mutants, names, options.jobs, log
        self.sanitize, self.refused, self.left_out = options.sanitize, set(), []
        self.memcheck = options.memcheck
        self.made = os.path.join(BUILD, "sanitized" if options.sanitize else "made")
        self.local = threading.local()
        self.kills = collections.defaultdict(collections.Counter)  # of each file: by which tests how many

    def hold(self, digest):
        """Writes down the mutants, for builds here and elsewhere, and for one that is broken off."""
        os.makedirs(BUILD, exist_ok=True)
        with open(HELD, "wb") as file:
            pickle.dump((digest, self.mutants, self.names, self.refused), file)

    @classmethod
    def held(cls, options, log, digest):
        """Those of these sources, from an earlier run, here or elsewhere; None if there are none."""
        try:
            with open(HELD, "rb") as file:
                held_digest, mutants, names, refused = pickle.load(file)
        except OSError:
            return None
        if held_digest != digest:
            return None
        found = cls(options, log, mutants, names)
        found.refused = refused
        return found

    # ---- the build ----

    def build(self, digest):
        self.hold(digest)
        for name in os.listdir(ROOT):
            if name not in ("src", "build", ".git"):
                link(os.path.join(TREE, name), os.path.join(ROOT, name))
        for folder, _, names in os.walk(os.path.join(ROOT, "src")):
            for name in names:
                path = os.path.join(folder, name)
                if not os.path.relpath(path, ROOT) in {m.name for m in self.mutants}:
                    link(os.path.join(TREE, os.path.relpath(path, ROOT)), path)
        size = 1 << max(12, len(self.mutants).bit_length())
        command = ["cmake", "-S", TREE, "-B", self.made, "-G", "Ninja", "-DTQ_DEV=ON", "-DTQ_CUDA=OFF",
                   "-DTQ_BUILD_TOOL=OFF", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
                   f"-DCMAKE_CXX_FLAGS=-w -include {HERE}/choice.h -DTQ_MUTANTS={size}",
                   "-DCMAKE_COMPILE_WARNING_AS_ERROR=OFF",
                   f"-DTQ_SANITIZE={'address;undefined' if self.sanitize else ''}", "-DTQ_FEW_ISAS=ON"]
        if shutil.which("ccache"):
            command += [f"-DCMAKE_{language}_COMPILER_LAUNCHER=ccache" for language in ("C", "CXX")]
        self.write()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + "\nrun.py: cmake fails")
        for targets in (["tqkv_core"], PROGRAMS):
            while True:
                done = subprocess.run(["cmake", "--build", self.made, "-j", str(self.jobs), "--target",
                                       *targets, "--", "-k", "0"], stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, text=True, env=dict(os.environ, LC_ALL="C"))
                if done.returncode == 0:
                    break
                before = len(self.refused)
                self.take_out(done.stdout)
                if len(self.refused) == before:
                    raise SystemExit(done.stdout[-3000:] + "\nrun.py: the sources do not build")
                self.log(f"the compiler refuses {len(self.refused) - before} mutants")
                self.hold(digest)
                self.write()

    def write(self):
        of_file = collections.defaultdict(list)
        for number, mutant in enumerate(self.mutants):
            of_file[mutant.name].append((number, mutant))
        for name in {"src/status.cpp", *of_file}:
            with open(os.path.join(ROOT, name), encoding="utf-8") as file:
                text = file.read()
            chosen = [(number, m) for number, m in of_file[name]
                      if number not in self.refused and not m.compile_time]
            text = instrumented(text, chosen)
            if name == "src/status.cpp":
                text += f'#include "{HERE}/choice.inc"\n'
            write_if_new(os.path.join(TREE, name), text)

    def take_out(self, complaints):
        places = re.findall(r"^(\S+?):(\d+):(\d+): (?:fatal )?error:", complaints, re.M)
        for path, line, column in set(places):
            name = os.path.relpath(os.path.abspath(os.path.join(self.made, path)), TREE)
            if not os.path.isfile(os.path.join(TREE, name)):
                name = re.sub(r"^(\.\./)*(.*?/)?(?=src/)", "", path)
            try:
                with open(os.path.join(TREE, name), encoding="utf-8") as file:
                    text = file.read().split("\n")[int(line) - 1]
            except (OSError, IndexError):
                continue
            inside = [int(m.group(1)) for m in re.finditer(r"/\*(\d+)<\*/.*?/\*\1>\*/", text)
                      if m.start() < int(column) <= m.end()]
            self.refused.update(inside or (number for number, m in enumerate(self.mutants)
                                           if m.name == name and m.line == int(line)))

    # ---- tests ----

    def server(self, program):
        """The program, waiting to be asked (choice.h); one for each thread."""
        servers = self.local.__dict__
        if program not in servers:
            servers[program] = Server(self, program)
        return servers[program]

    def run(self, program, names, choice, seconds):
        """(status of wait, processor seconds, end of the text); a limit that is hit ends it by a signal."""
        server = self.server(program)
        seconds *= SLOWER if self.memcheck else 1
        tests = "-" if program in SINGLE else ":".join(names)
        answer = server.ask(f"{choice} {int(seconds) + 1} {tests}", 30 * seconds + 60)
        if answer is None:  # it sleeps, or the limit of memory ended the server
            server.end()
            del self.local.__dict__[program]
            return signal.SIGKILL, seconds, ""
        status, microseconds = answer
        return status, microseconds / 1e6, server.text()

    def tests(self):
        found = []
        for program in PROGRAMS:
            if program in SINGLE:
                found.append(Test(program, ""))
                continue
            arguments = ["--gtest_list_tests"]
            if program in LEFT_OUT:
                arguments.append(f"--gtest_filter={LEFT_OUT[program]}")
            command = [os.path.join(self.made, "tests", program), *arguments]
            suite, text = "", subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for line in text.split("\n"):
                line = line.split("#")[0].rstrip()
                if line.startswith("  "):
                    found.append(Test(program, suite + line.strip()))
                elif line.endswith("."):
                    suite = line
        return found

    def survey(self, pool):
        """Runs every test once without a mutant."""
        def once(at_test):
            at, test = at_test
            path = os.path.join(self.made, f"reached.{at}")
            if os.path.exists(path):
                os.remove(path)
            status, test.seconds, text = self.run(test.program, [test.name], f"record:{path}", 20 * SLOWEST)
            if status:
                self.log(f"{text}\n{test.program} {test.name} fails without a mutant, status {status}, and "
                         "judges none")
                self.left_out.append(test)
                return
            test.seconds = max(0.001, test.seconds - empty.get(test.program, 0))
            with open(path, "rb") as file:
                test.reached = file.read()
            os.remove(path)

        tests = self.surveyed()
        if tests is None and self.memcheck:
            raise SystemExit("run.py: no survey of these programs; --memcheck follows a run without it")
        if tests is None:
            tests = self.tests()
            # What a child takes before its first test counts once for all that it runs.
            none = str(len(self.mutants))
            empty = {program: self.run(program, ["-*"], none, SLOWEST)[1] for program in PROGRAMS
                     if program not in SINGLE}
            list(pool.map(once, enumerate(tests)))
            tests = [test for test in tests if test not in self.left_out]
            if not self.left_out:
                with open(os.path.join(self.made, "survey"), "wb") as file:
                    pickle.dump((self.built(), tests), file)
        for test in [test for test in tests if test.seconds > SLOWEST]:
            self.log(f"{test.program} {test.name} takes {test.seconds:.0f} s and judges none")
            self.left_out.append(test)
            tests.remove(test)
        return sorted(tests, key=lambda t: t.seconds)

    def built(self):
        """When each program was linked, and what it reads."""
        paths = [os.path.join(self.made, "tests", program) for program in PROGRAMS] + [CASES]
        return [os.stat(path).st_mtime_ns for path in paths]

    def surveyed(self):
        """What the last survey of these programs has found, if there is one."""
        try:
            with open(os.path.join(self.made, "survey"), "rb") as file:
                built, tests = pickle.load(file)
        except OSError:
            return None
        return tests if built == self.built() else None

    # ---- one mutant ----

    def learn(self, name, by):
        """That a mutant of the file was killed by that test."""
        self.kills[name][by] += 1

    def judge(self, number, tests, most=0, until=math.inf):
        """("killed", by) or ("timeout", by), ("survived", "") or ("not reached", ""), or None when the clock
        reads until. most: processor seconds that its tests may take together, 0 = any."""
        kills = self.kills[self.mutants[number].name]
        left = sorted((test for test in tests if test.reached[number]),
                      key=lambda test: (-kills[test.name or test.program] / test.seconds, test.seconds))
        whole = itertools.accumulate(test.seconds for test in left)
        left = [test for test, end in zip(left, whole) if not most or end <= most] or left[:1]
        if self.memcheck:
            left = left[:MOST_WATCHED]
        if not left:
            return "not reached", ""
        portion, at = 0.2, 0
        while at < len(left):
            if time.time() > until:
                return None
            batch, seconds = collections.defaultdict(list), collections.Counter()
            while at < len(left) and (not batch or sum(seconds.values()) < portion):
                batch[left[at].program].append(left[at].name)
                seconds[left[at].program] += left[at].seconds
                at += 1
            for program, names in batch.items():
                limit = 4 * seconds[program] + 2
                status, _, text = self.run(program, names, str(number), limit)
                # The survey tells that they pass, but not that valgrind has nothing to say.
                if status and self.memcheck and self.run(program, names, str(len(self.mutants)), limit)[0]:
                    continue
                if status:
                    failed = re.search(r"^\[  FAILED  \] ([\w/.]+)|^(not ok - .*)", text, re.M)
                    by = (failed.group(1) or failed.group(2)) if failed else f"{program} (signal or exit)"
                    self.learn(self.mutants[number].name, program if program in SINGLE else by)
                    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                    return "timeout" if ended in (signal.SIGXCPU, signal.SIGKILL) else "killed", by
            portion *= 2
        return "survived", ""

