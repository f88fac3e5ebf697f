# SPDX-License-Identifier: Apache-2.0
"""`tqkv info` against what FORMAT.md and the public header promise."""
import json
import re

from tool import ROOT, run


def header_version():
    text = (ROOT / "include" / "tqkv.h").read_text()
    return ".".join(
        re.search(rf"#define TQ_VERSION_{part} (\d+)", text)[1] for part in ("MAJOR", "MINOR", "PATCH"))


def test_json():
    done = run("info", "--json")
    assert done.returncode == 0 and done.stderr == ""
    info = json.loads(done.stdout)
    assert info["version"] == header_version()
    assert info["build"].startswith("tqkv " + header_version())
    cpu = info["support"]["cpu"]
    assert cpu["head_dim"] == [*range(8, 257, 4), 512, 576]
    assert cpu["key_bits"] == cpu["value_bits"] == [1, 2, 3, 4, 5, 6, 8, 16]
    assert cpu["rotation"] == ["hadamard", "dense"] and cpu["io_dtype"] == ["f32", "f16", "bf16"]
    first = info["devices"][0]
    assert first["type"] == "cpu" and first["simd"] and first["threads"] >= 1
    assert info["cpu"]["isa"] == first["simd"] and first["simd"] in info["cpu"]["isas"]
    assert ("cuda" in info["support"]) != ("cuda_unavailable" in info)


def test_text():
    done = run("info")
    assert done.returncode == 0 and done.stderr == ""
    # the second line is the library's own build line
    assert max(map(len, done.stdout.splitlines()[2:])) <= 120
    for word in (f"tqkv {header_version()}", "devices", "supported on cpu", "head_dim"):
        assert word in done.stdout, word


def test_version():
    done = run("--version")
    assert done.returncode == 0 and done.stdout.strip() == "tqkv " + header_version()
