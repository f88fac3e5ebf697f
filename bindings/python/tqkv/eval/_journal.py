# SPDX-License-Identifier: Apache-2.0
"""Results of jobs in a file, one JSON line each, as soon as they are there: a run that was ended goes on
where it was. And a line of progress with the time left."""
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

from ..errors import InvalidState


class Journal:
    """DIR/results.jsonl. Its first line is the run's settings; a run with others is refused."""

    def __init__(self, folder: str, settings: Dict[str, Any], fresh: bool = False):
        self.path = Path(folder) / "results.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if fresh and self.path.exists():
            self.path.unlink()
        self.results: Dict[str, Any] = {}
        whole = self._read(settings) if self.path.exists() else 0
        self.file = open(self.path, "r+b" if whole else "wb")
        self.file.truncate(whole)
        self.file.seek(whole)
        if not whole:
            self._write({"settings": settings})

    def _read(self, settings):
        """Bytes of whole lines; a last one that was cut off is dropped."""
        raw = self.path.read_bytes()
        raw = raw[:raw.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in raw.splitlines()]
        if lines and lines[0].get("settings") != json.loads(json.dumps(settings)):
            raise InvalidState(f"out = {str(self.path.parent)!r}: holds results of a run with other settings "
                               f"({json.dumps(lines[0].get('settings'))}); give --fresh to begin anew, or "
                               "another folder")
        self.results = {line["key"]: line["result"] for line in lines[1:]}
        return len(raw)

    def add(self, key: str, result: Any) -> None:
        self.results[key] = json.loads(json.dumps(result))
        self._write({"key": key, "result": result})

    def _write(self, line):
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self):
        self.file.close()


class Progress:
    """A bar on a terminal, else a line every half a minute. Work is counted in any unit that jobs share."""

    def __init__(self, total: float, stream=None, clock: Callable[[], float] = time.monotonic):
        self.total, self.done, self.stream, self.clock = max(total, 1e-9), 0.0, stream or sys.stderr, clock
        self.start = self.said = clock()
        self.live = self.stream.isatty()

    def step(self, work: float, what: str) -> None:
        self.done += work
        now = self.clock()
        if self.live or now - self.said >= 30 or self.done >= self.total:
            self.said = now
            left = (now - self.start) * (self.total / self.done - 1) if self.done else 0
            share = min(1.0, self.done / self.total)
            bar = "#" * int(24 * share)
            text = f"[{bar:<24}] {share:4.0%}, {_clock(left)} left, {what}"
            self.stream.write(f"\r{text:<100.100}" if self.live else text + "\n")
            if self.live and self.done >= self.total:
                self.stream.write("\n")
            self.stream.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def run(journal: Journal, jobs: List[Dict[str, Any]], work: Callable[[Dict[str, Any]], Any],
        cost: Callable[[Dict[str, Any]], float], stream=None) -> Dict[str, Any]:
    """Does what is not in the journal yet; returns all results by key."""
    left = [job for job in jobs if key_of(job) not in journal.results]
    progress = Progress(sum(map(cost, left)), stream)
    if len(left) < len(jobs):
        progress.stream.write(f"{len(jobs) - len(left)} of {len(jobs)} jobs are there already\n")
    for job in left:
        journal.add(key_of(job), work(job))
        progress.step(cost(job), key_of(job))
    return {key_of(job): journal.results[key_of(job)] for job in jobs}


def key_of(job: Dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in job.items())
