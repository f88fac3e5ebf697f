#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Register and spill budget of the attend kernels, from `nvcc -Xptxas -v` output.

    check_resources.py LOG... [--list]

Fails if a compiled (not generic) attend kernel spills more than its allowance below, or if no kernel was found at all. Allowances are what is
known and harmless today; a kernel that is not listed may not spill.
"""
import re
import sys

# Spill bytes (stores, loads) by (dimension, key bits, value bits): long-lived numbers of the frame around the step.
ALLOWED = {
    (128, 2, 2): (32, 32),
    (128, 3, 3): (96, 160),
    (128, 4, 3): (80, 128),
    (128, 4, 2): (48, 48),
    (192, 2, 2): (48, 48),
    (192, 3, 3): (48, 64),
    (192, 4, 4): (48, 64),
    (192, 8, 8): (48, 48),
}

FUNCTION = re.compile(r"Function properties for (\S+)")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
CODED = re.compile(r"attend_kernelINS0_9CodedCoreILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)E")
GENERIC = re.compile(r"attend_kernelINS0_11GenericCoreILi(\d+)ELi(\d+)E")


def kernels(lines):
    """Yields (name, stack, stores, loads, registers) of each attend kernel."""
    name = found = None
    for line in lines:
        match = FUNCTION.search(line)
        if match:
            name = match.group(1)
            continue
        match = SPILLS.search(line)
        if match and name and ("attend_kernel" in name):
            found = (name,) + tuple(int(x) for x in match.groups())
            continue
        match = REGISTERS.search(line)
        if match and found:
            yield found + (int(match.group(1)),)
            found = name = None


def main(arguments):
    show = "--list" in arguments
    count = failed = 0
    for path in (a for a in arguments if not a.startswith("--")):
        with open(path, encoding="utf-8", errors="replace") as log:
            for name, stack, stores, loads, registers in kernels(log):
                coded, generic = CODED.search(name), GENERIC.search(name)
                if not coded and not generic:
                    continue
                count += 1
                key = tuple(int(x) for x in coded.groups()[:3]) if coded else None
                allowed = ALLOWED.get(key, (0, 0)) if coded else (10**6, 10**6)
                bad = stores > allowed[0] or loads > allowed[1]
                failed += bad
                text = "d %d k%dv%d" % key if coded else "generic %s/%s" % generic.groups()
                if bad or show:
                    print("%s%-20s %3d registers, %4d stack, spills %d/%d" % ("FAILED " if bad else "", text, registers, stack, stores, loads))
    print("check_resources: %d kernels, %d failed" % (count, failed))
    return 0 if count and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
