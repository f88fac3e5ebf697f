#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Register and spill budget of the attend kernels, from what the compiler prints with -Xptxas -v.

    check_resources.py LOG... [--list]

Fails if a compiled (not generic) attend kernel for the architecture that was measured, sm_90 or sm_90a,
spills more than its allowance below, if an allowance is larger than needed, or if no such kernel was found.
Kernels of other architectures and generic ones are counted, not judged. Prints one line a kernel with --list,
and at the end "checks: N passed, N failed, N skipped".
"""
import re
import sys

# (stored dimension, key bits, value bits): (bytes of spill stores, of spill loads) that are known and
# harmless. A kernel that is not listed may not spill.
ALLOWED = {}
# Kernels that take exact tokens: their preparer keeps its place in the work list over a call.
EXACT = (248, 204)
JUDGED = ("sm_90", "sm_90a")

ENTRY = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
FUNCTION = re.compile(r"Function properties for (\S+)")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
CODED = re.compile(r"attend_kernelINS\d*_\d+(?:ExactTooINS\d*_\d+)?CodedCoreILi(\d+)ELi(\d+)ELi(\d+)E")
GENERIC = re.compile(r"attend_kernelINS\d*_\d+GenericCoreILi(\d+)ELi(\d+)E")


def kernels(lines):
    """(name, architecture, registers, stack, stores, loads) of each attend kernel. The functions that it
    calls are listed behind it, with their own properties: what they spill is added to the kernel's."""
    found, name, own = [], None, None
    for line in lines:
        match = ENTRY.search(line)
        if match:
            name = match.group(1)
            if "attend_kernel" in name:
                found.append([name, match.group(2), 0, 0, 0, 0])
            continue
        if name is None or "attend_kernel" not in name:
            continue
        match = FUNCTION.search(line)
        if match:
            own = match.group(1) == name
            continue
        match = SPILLS.search(line)
        if match:
            numbers = [int(x) for x in match.groups()]
            found[-1][3] += numbers[0] if own else 0
            found[-1][4] += numbers[1]
            found[-1][5] += numbers[2]
            continue
        match = REGISTERS.search(line)
        if match:
            found[-1][2] = int(match.group(1))
    return found


def key_of(name):
    return tuple(int(x) for x in CODED.search(name).groups())


def judge(found, show):
    """(passed, failed, not judged) of the list of kernels."""
    passed = failed = other = 0
    for name, architecture, registers, stack, stores, loads in found:
        coded = CODED.search(name)
        generic = GENERIC.search(name)
        text = "d %s k%sv%s" % coded.groups() if coded else "generic %s/%s" % generic.groups(
        ) if generic else name[:24]
        verdict = ""
        if coded and architecture in JUDGED:
            allowed = ALLOWED.get(key_of(name), EXACT if "ExactToo" in name else (0, 0))
            if stores > allowed[0] or loads > allowed[1]:
                verdict = "FAILED: at most %d/%d allowed" % allowed
                failed += 1
            else:
                passed += 1
        else:
            other += 1
        if verdict or show:
            print("%-24s %-8s %3d registers, %4d bytes of stack, spills %d/%d  %s" %
                  (text, architecture, registers, stack, stores, loads, verdict))
    return passed, failed, other


def main(arguments):
    found, paths = [], [a for a in arguments if not a.startswith("--")]
    for path in paths:
        with open(path, encoding="utf-8", errors="replace") as log:
            found += kernels(log)
    passed, failed, other = judge(found, "--list" in arguments)
    needed = {key_of(k[0]): bool(k[4] or k[5]) for k in found
              if CODED.search(k[0]) and "ExactToo" not in k[0] and k[1] in JUDGED}
    unused = [key for key in ALLOWED if needed.get(key) is False]
    for key in unused:
        print("FAILED: the allowance of d %d k%dv%d is not needed any more; remove it" % key)
    if passed + failed == 0:
        print("FAILED: %d logs name no compiled attend kernel for %s" % (len(paths), " or ".join(JUDGED)))
    print("%d generic kernels or of other architectures, not judged" % other)
    bad = failed + len(unused) + (passed + failed == 0)
    print("checks: %d passed, %d failed, 0 skipped" % (passed, bad))
    return 0 if bad == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
