#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Judges a log of compute-sanitizer --tool racecheck.

    racecheck_report.py LOG

One kind of report is left out, and counted: between the producer of an attend kernel, which writes items and starts bulk copies into a worker's
queue, and that worker, which reads them. The worker gives a place back by a counter (queue_consumed), which racecheck does not follow; a memory barrier in
its place costs 1 % at 2 bits, and reports about the bulk copies stay (cuda/DESIGN.md). Every other report is printed and fails.
Exit status 0: the log is whole and holds nothing else.
"""

import re
import sys

PRODUCER = re.compile(r"\bproduce<|\bbulk_copy\(")
WORKER = re.compile(r"\b(coded_job|work|exact_job|wait_item)<|\bload_words<|Core<.*>::(step|scores|weigh|raw_scores|raw_values|coded_scores|coded_values)\(")


def side(line: str) -> str:
    return "producer" if PRODUCER.search(line) else "worker" if WORKER.search(line) else "other"


def hazards(text: str) -> list[list[str]]:
    """The reports of a log: the line that opens each and the accesses that it names."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if "Race reported between" in line:
            found.append([line])
        elif found and re.match(r"=+\s+and (Read|Write) access", line):
            found[-1].append(line)
    return found


def of_the_queue(hazard: list[str]) -> bool:
    first, rest = side(hazard[0]), {side(line) for line in hazard[1:]}
    return (first, rest) in (("producer", {"worker"}), ("worker", {"producer"}))


def main() -> int:
    with open(sys.argv[1], encoding="utf-8", errors="replace") as log:
        text = log.read()
    summary = re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed", text)
    if not summary:
        print("racecheck: no summary, the run did not end")
        return 1
    found = hazards(text)
    others = [hazard for hazard in found if not of_the_queue(hazard)]
    for hazard in others:
        print("\n".join(line[:300] for line in hazard))
    whole = len(found) == int(summary[1])
    if not whole:
        print(f"racecheck: {summary[1]} reports in the summary, {len(found)} in the log")
    print(f"racecheck: {len(others)} reports, {len(found) - len(others)} of worker queues left out")
    return 0 if whole and not others else 1


if __name__ == "__main__":
    sys.exit(main())
