#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Judges a log of compute-sanitizer --tool racecheck.

    racecheck_report.py LOG LIMIT
    racecheck_report.py --self-check

LIMIT: the reports that the tool was asked to print at most; a log that has so many may lack others.
One kind of report is left out, and counted: between the producer of an attend kernel, which writes items and
starts bulk copies into a worker's queue, and that worker, which reads them. The worker gives a place back by
a counter (queue_consumed), which racecheck does not follow; a memory barrier in its place costs 1 % at 2
bits, and reports about the bulk copies stay (cuda/DESIGN.md). The copies go into the queues alone, so that
beside one the code of a worker that the compiler put into the kernel itself counts as the worker's. Every
other report is printed and fails. Exit status 0: the log is whole and holds nothing else.
"""

import re
import sys

PRODUCER = re.compile(r"\bproduce<|\bbulk_copy\(")
WORKER = re.compile(
    r"\b(coded_job|work|exact_job|exact_rows|wait_item|raw_scores|raw_values|load_words)<|"
    r"\b(load_matrices_transposed|imma_s8s8)\(|"
    r"Core<.*>::(step|scores|weigh|raw_scores|raw_values|coded_scores|coded_values)\("
)


def side(line: str) -> str:
    return "producer" if PRODUCER.search(line) else "worker" if WORKER.search(line) else "other"


def in_the_kernel(line: str) -> bool:
    return "attend_kernel<" in line


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
    of_copies = any("bulk_copy(" in line for line in hazard)
    sides = ["worker" if of_copies and in_the_kernel(line) else side(line) for line in hazard]
    first, rest = sides[0], set(sides[1:])
    return (first, rest) in (("producer", {"worker"}), ("worker", {"producer"}))


def judge(text: str, limit: int) -> int:
    """The number of reasons to fail; prints them, and what was left out."""
    summary = re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed", text)
    if not summary:
        print("racecheck: no summary, the run did not end")
        return 1
    found = hazards(text)
    others = [hazard for hazard in found if not of_the_queue(hazard)]
    for hazard in others:
        print("\n".join(line[:300] for line in hazard))
    reasons = len(others)
    if len(found) != int(summary[1]):
        print(f"racecheck: {summary[1]} reports in the summary, {len(found)} in the log")
        reasons += 1
    if len(found) >= limit:
        print(f"racecheck: {limit} reports, as many as the tool may print")
        reasons += 1
    print(f"racecheck: {len(others)} reports, {len(found) - len(others)} of worker queues left out")
    return reasons


def report(first: str, *rest: str) -> str:
    lines = [f"========= Error: Race reported between Write access at {first}+0xe0 in a.cuh:1"]
    return "\n".join(
        lines + [f"=========     and Read access at {access}+0x10 in b.cuh:2 [8 hazards]"
                 for access in rest]) + "\n"


def self_check() -> int:
    core = "tq::cuda::attend::CodedCore<(int)64>"
    producer, worker, describe = (f"void tq::cuda::attend::{name}<{core}>(int)"
                                  for name in ("produce", "coded_job", "describe"))
    copy, read, put = "tq::cuda::bulk_copy(void *)", "void load_words<(int)4>(int)", f"{core}::put(float *)"
    kernel = f"void tq::cuda::attend::attend_kernel<{core}, (int)12>(int)"
    queue = report(producer, worker, worker) + report(copy, read, kernel)
    cases = [  # log, reports in its summary, reasons to fail
        ("", 0, 0), (queue, 2, 0), (queue + report(describe, worker), 3, 1),
        (report(producer, worker, describe), 1, 1), (report(producer, put), 1, 1),
        (report(worker, worker), 1, 1), (report(producer), 1, 1), (report(producer, kernel), 1, 1),
        (report(copy, kernel, describe), 1, 1), (queue, 3, 1), (queue * 5, 10, 1)
    ]
    wrong = [
        log for log, said, reasons in cases
        if judge(f"{log}========= RACECHECK SUMMARY: {said} hazards displayed\n", 10) != reasons
    ]
    wrong += [] if judge(queue, 10) == 1 else [queue]
    print(f"racecheck_report --self-check: {len(wrong)} of {len(cases) + 1} logs judged wrong")
    return 1 if wrong else 0


def main() -> int:
    if sys.argv[1:] == ["--self-check"]:
        return self_check()
    with open(sys.argv[1], encoding="utf-8", errors="replace") as log:
        return 1 if judge(log.read(), int(sys.argv[2])) else 0


if __name__ == "__main__":
    sys.exit(main())
