# SPDX-License-Identifier: Apache-2.0
"""What a disk may hold if the machine stops at any moment while a file is replaced: the old file or the new
one, whole. recorder.c writes down what the writers (the Python package, the program tqkv) do; from that
images are made: of what was not synced any 512 bytes may be missing and any length be there, and names
changed since their folder was synced may be the old ones or the new ones. TQKV_TOOL names the program."""
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from golden import FILES

HERE = Path(__file__).resolve().parent
IMAGES = 100_000 if os.environ.get("TQKV_TEST_LONG") else 2_000  # of each moment
SECTOR = 512


@dataclass
class File:
    """What a file holds: so many bytes of the new content, so many of them for sure."""

    written: int = 0
    synced: int = 0


class Disk:
    """Plays calls again. names: what each name stands for; None is the old file."""

    def __init__(self, target):
        self.target, self.open, self.names = target, {}, {target: None}
        self.may_be = [None]  # what the target may stand for after a crash

    def play(self, call, file, count, path, to):
        if call in ("create", "open"):
            self.open[file] = path
            assert call == "open" or path != self.target, "the old file is written over"
            if call == "create":
                self.names[path] = File()
            return
        if call == "rename":
            self.names[to] = self.names.pop(path)
            if to == self.target:
                self.may_be.append(self.names[to])
            return
        path = self.open[file]
        if call == "write":
            self.names[path].written += count
        elif os.path.isdir(path):
            self.may_be = [self.names[self.target]]
        elif self.names.get(path):
            self.names[path].synced = self.names[path].written

    def image(self, random, old, new):
        """The bytes of the target."""
        file = self.may_be[int(random.integers(len(self.may_be)))]
        if file is None:
            return old
        data = bytearray(new[:int(random.integers(file.synced, file.written + 1))])
        for at in range(file.synced // SECTOR * SECTOR, len(data), SECTOR):
            if random.random() < 0.5:
                first, end = max(at, file.synced), min(at + SECTOR, len(data))
                data[first:end] = bytes(end - first)
        return bytes(data)


def wrong_images(calls, target, old, new):
    """How many images were looked at, and which of them are neither file; at the end only the new one is
    right, as the writer has said that it is there."""
    random, disk, looked, wrong = np.random.default_rng(3), Disk(target), 0, []
    for at, call in enumerate(calls):
        disk.play(*call)
        # One image stands for all where only one is possible.
        certain = len(disk.may_be) == 1 and (disk.may_be[0] is None or disk.may_be[0].synced == len(new))
        for _ in range(1 if certain else IMAGES):
            image, looked = disk.image(random, old, new), looked + 1
            if image != new and (image != old or at == len(calls) - 1):
                wrong.append((at, len(image)))
    return looked, wrong


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    library = tmp_path_factory.mktemp("recorder") / "recorder.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", HERE / "recorder.c", "-o",
                    library, "-ldl"], check=True)
    return library


def recorded(recorder, folder, command):
    """The calls of a command on files of the folder."""
    log = folder.parent / "calls.txt"
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
                                             "LD_PRELOAD": str(recorder), "RECORD_LOG": str(log),
                                             "RECORD_FOLDER": str(folder)})
    calls = [line.split("\t") for line in log.read_text().splitlines()]
    return [(call, int(file), int(count), path, to) for call, file, count, path, to in calls]


def python_saves(target):
    return [sys.executable, __file__, target]


def tool_converts(target):
    return [os.environ["TQKV_TOOL"], "cache", "convert", HERE / "golden" / "window.tqkv", "-o", target]


WRITERS = {"python": python_saves, "tool": tool_converts}


@pytest.mark.parametrize("name", WRITERS)
def test_images_of_a_crash(name, recorder, tmp_path):
    if name == "tool" and not os.environ.get("TQKV_TOOL"):
        pytest.skip("TQKV_TOOL names no program")
    target = tmp_path / "folder" / "prompt.tqkv"
    target.parent.mkdir()
    shutil.copy(HERE / "golden" / "raw.tqkv", target)
    old = target.read_bytes()
    calls = recorded(recorder, target.parent, WRITERS[name](target))
    new = target.read_bytes()
    assert sum(count for call, _, count, *_ in calls if call == "write") == len(new) and new != old
    looked, wrong = wrong_images(calls, str(target), old, new)
    assert wrong == [] and looked > IMAGES
    print(f"{name}: {looked} images of {len(calls)} calls, each the old file or the new one")
    # What a writer that forgets to sync the file, or the folder, would leave.
    syncs = [at for at, (call, *_) in enumerate(calls) if call == "sync"]
    assert len(syncs) == 2
    for at in syncs:
        assert wrong_images(calls[:at] + calls[at + 1:], str(target), old, new)[1]


if __name__ == "__main__":
    world = FILES["window"]()
    world.cache.save(world.sequence, sys.argv[1])
