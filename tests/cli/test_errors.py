# SPDX-License-Identifier: Apache-2.0
"""What the program says, and its exit code, when something is wrong: arguments, files, captures, the
library's refusals, outputs."""
import json
import os
import resource
import struct
import subprocess

import numpy as np
import pytest

from tool import (EXIT_CAPTURE, EXIT_FILE, EXIT_LIBRARY, EXIT_OUTPUT, EXIT_USAGE, SLICE, find_tool,
                  make_capture, run, write_raw, write_safetensors)


def expect(done, code, *words):
    assert done.returncode == code, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert done.stderr.strip()
    for word in words:
        assert word in done.stderr, (word, done.stderr)


def entry(dtype="F16", shape=(2,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("arguments", [
    [],
    ["eval"],
    ["nonsense"],
    ["eval", SLICE, "--layers", "1-"],
    ["eval", SLICE, "--layers", "5-2"],
    ["eval", SLICE, "--layers", "a"],
    ["eval", SLICE, "--layers", "0,,2"],
    ["eval", SLICE, "--sweep", "--key-bits", "3"],
    ["eval", SLICE, "--rotation", "spin"],
    ["eval", SLICE, "--key-scale-rule", "1"],
    ["eval", SLICE, "--threads", "-1"],
    ["eval", SLICE, "--repeats", "0"],
    ["eval", SLICE, "--seed", "x"],
    ["info", "--nonsense"],
    ["eval", SLICE, "--window", "2147483648"],
])
def test_wrong_arguments(arguments):
    assert run(*arguments).returncode == EXIT_USAGE


def test_help_names_the_exit_codes():
    for arguments in (["--help"], ["eval", "--help"]):
        done = run(*arguments)
        assert done.returncode == 0 and "Exit codes: 0 done" in done.stdout


def test_no_such_file(tmp_path):
    expect(run("eval", tmp_path / "none.safetensors"), EXIT_FILE, "none.safetensors", "no such file")


def test_a_folder_or_device_is_no_file(tmp_path):
    expect(run("eval", tmp_path), EXIT_FILE, "not a regular file")
    expect(run("eval", "/dev/null"), EXIT_FILE, "not a regular file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path):
    path = write_safetensors(tmp_path / "secret.safetensors", make_capture())
    path.chmod(0)
    expect(run("eval", path), EXIT_FILE, "cannot be opened")


@pytest.mark.parametrize("content, words", [
    (b"", ["0 bytes"]),
    (b"1234567", ["7 bytes"]),
    (b"PK\x03\x04" + bytes(range(60)), ["not a safetensors file"]),
    (struct.pack("<Q", 1 << 63) + b"{}", ["limit"]),
    (struct.pack("<Q", 100) + b"{}", ["header of 100 bytes in a file of 10"]),
    (struct.pack("<Q", 0), ["does not start with"]),
    (struct.pack("<Q", 2) + b"[]", ["does not start with"]),
    (struct.pack("<Q", 8) + b"{\"a\": 1,", ["not valid JSON"]),
    (struct.pack("<Q", 20) + b"{" * 20, ["not valid JSON"]),
])
def test_not_safetensors(tmp_path, content, words):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    expect(run("eval", path), EXIT_FILE, "bad.safetensors", *words)


@pytest.mark.parametrize("header, data, words", [
    ({"a": entry(offsets=(0, 8))}, 8, ["'a'", "8 bytes do not hold F16 [2]"]),
    ({"a": entry(offsets=(0, 6))}, 4, ["'a'", "truncated"]),
    ({"a": entry(offsets=(4, 0))}, 4, ["run backwards"]),
    ({"a": entry(), "b": entry(offsets=(2, 6))}, 6, ["overlap at byte 2"]),
    ({"a": entry(), "b": entry(offsets=(6, 10))}, 10, ["bytes 4 to 6"]),
    ({"a": entry()}, 6, ["last 2 bytes"]),
    ({"a": entry(dtype="F13")}, 4, ["unknown dtype 'F13'"]),
    ({"a": entry(dtype=16)}, 4, ["dtype is not a string"]),
    ({"a": entry(shape=[2**32, 2**32, 2])}, 4, ["overflows"]),
    ({"a": entry(shape=[2**63])}, 4, ["shape holds something else"]),
    ({"a": entry(shape=[2**62, 2])}, 4, ["do not hold"]),
    ({"a": entry(shape=[-2])}, 4, ["shape holds something else"]),
    ({"a": entry(shape=[2.0])}, 4, ["shape holds something else"]),
    ({"a": entry(shape=[1] * 17)}, 4, ["at most 16"]),
    ({"a": entry(offsets=(0, 4, 4))}, 4, ["data_offsets"]),
    ({"a": entry(offsets=(-4, 0))}, 4, ["data_offsets"]),
    ({"a": {"dtype": "F16", "shape": [2]}}, 4, ["needs dtype, shape and data_offsets"]),
    ({"a": 7}, 0, ["needs dtype, shape and data_offsets"]),
    ({"__metadata__": {"a": 1}}, 0, ["__metadata__", "not a string"]),
    ({"__metadata__": []}, 0, ["__metadata__"]),
    ('{"a": %s, "a": %s}' % (json.dumps(entry()), json.dumps(entry())), 4, ["'a' twice"]),
    ('{"a": {"dtype": "F16", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', 4, ["'dtype' twice"]),
    # nothing of the file reaches the terminal raw
    ({"\x1b[31mred\n": entry(dtype="F13")}, 4, ["'\\x1b[31mred\\x0a'"]),
    ({"a\x7f\u009b\u202e\u00e9": entry(dtype="F13")}, 4, ["'a\\x7f\\xc2\\x9b\\xe2\\x80\\xae\u00e9'"]),
])
def test_malformed_headers(tmp_path, header, data, words):
    expect(run("eval", write_raw(tmp_path / "bad.safetensors", header, bytes(data))), EXIT_FILE, *words)


def test_truncation_anywhere_is_noticed(tmp_path):
    whole = write_safetensors(tmp_path / "whole.safetensors", make_capture(tokens=8)).read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in list(range(0, 400, 23)) + [len(whole) - 1]:
        path.write_bytes(whole[:length])
        expect(run("eval", path), EXIT_FILE, "cut.safetensors")


def test_damaged_headers_never_crash(tmp_path):
    """Bytes of the header changed at random: every outcome is an orderly one, and a complaint is never
    empty."""
    whole = bytearray(write_safetensors(tmp_path / "whole.safetensors", make_capture(tokens=8)).read_bytes())
    header = 8 + struct.unpack_from("<Q", whole)[0]
    random = np.random.default_rng(5)
    path = tmp_path / "damaged.safetensors"
    complaints = 0
    for _ in range(250):
        damaged = bytearray(whole)
        for at in random.integers(0, header, random.integers(1, 4)):
            damaged[at] = random.choice(
                [random.integers(0, 256),
                 ord("0"), ord("9"), ord("{"),
                 ord('"'), 0xFF])
        path.write_bytes(damaged)
        done = run("eval", path, "--repeats", 1, "--json")
        assert done.returncode in (0, EXIT_FILE, EXIT_CAPTURE, EXIT_LIBRARY), (bytes(damaged[:header]), done)
        assert done.returncode == 0 or done.stderr.strip()
        complaints += done.returncode != 0
    assert complaints > 200


def test_wrong_tensor_names_list_what_is_there(tmp_path):
    path = write_safetensors(tmp_path / "names.safetensors",
                             {"model.k": np.zeros((1, 4, 32)), "model.v": np.zeros((1, 4, 32))})
    expect(run("eval", path), EXIT_CAPTURE, "found 2 tensors: model.k F16 [1, 4, 32], model.v",
           "layers.N.key [kv heads, tokens, dim]")
    tensors = make_capture()
    del tensors["layers.0.query"]
    path = write_safetensors(tmp_path / "names.safetensors", tensors)
    expect(run("eval", path), EXIT_CAPTURE, "no tensor layers.0.query", "layers.0.key F16 [1, 40, 32]",
           "expected")


def control_characters(text):
    return [c for c in text if (c < " " and c != "\n") or "\x7f" <= c < "\xa0"]


def test_no_control_character_reaches_the_terminal(tmp_path):
    """Of tensor names, paths and arguments, in every complaint and in the tables."""
    evil = "\x1b[2J\x07\n\x9b"
    names = write_safetensors(tmp_path / "names.safetensors", {evil + "layers.0.k": np.zeros((1, 4, 32))})
    folder = tmp_path / evil
    folder.mkdir()
    good = write_safetensors(folder / "good.safetensors", make_capture())
    bad = folder / "bad.safetensors"
    bad.write_bytes(b"1234567")
    for arguments, code in (
        (["eval", names], EXIT_CAPTURE),
        (["eval", bad], EXIT_FILE),
        (["eval", good, "--layers", "7"], EXIT_CAPTURE),
        (["eval", good, "--rotation", evil], EXIT_USAGE),
        (["eval", good, "--layers", evil], EXIT_USAGE),
        (["eval", good, "--plot", tmp_path / evil / "none" / "p.svg"], EXIT_OUTPUT),
        (["eval", good, "--repeats", 1], 0),
        (["eval", good, "--repeats", 1, "--json"], 0),
    ):
        done = run(*arguments)
        assert done.returncode == code, (arguments, done)
        assert not control_characters(done.stdout + done.stderr), (arguments, done)
        # no complaint is broken into lines by what it quotes
        assert code == 0 or "\\x1b[2J\\x07" in done.stderr or code == EXIT_USAGE, (arguments, done)


@pytest.mark.parametrize("header, words", [
    ('{"a":' + "[" * 20_000_000, ["nested deeper than the 3 levels", "20000005 bytes"]),
    ('{"a":' * 4_000_000, ["nested deeper than the 3 levels"]),
    ('{"a":{"shape":[' + "0," * 10_000_000, ["more than 1000000 names and values"]),
    ('{"__metadata__":{' + ",".join(f'"{i:x}":""' for i in range(600_000)), ["more than 1000000"]),
])
def test_a_header_costs_no_more_memory_than_a_few_times_its_size(tmp_path, header, words):
    """Ten times the header and 250 MB for the program: nests took 75 bytes a byte, wide lists 16 and more."""
    path = write_raw(tmp_path / "deep.safetensors", header, b"")
    limit = 10 * len(header) + 250_000_000
    done = run("eval", path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    expect(done, EXIT_FILE, "deep.safetensors", *words)


def test_as_many_tensors_as_a_large_checkpoint_has_are_read(tmp_path):
    tensors = {f"model.layers.{i}.mlp.weight": entry(offsets=(4 * i, 4 * i + 4)) for i in range(50_000)}
    path = write_raw(tmp_path / "many.safetensors", tensors, bytes(200_000))
    expect(run("eval", path), EXIT_CAPTURE, "found 50000 tensors")


def test_a_missing_layer_lists_those_there():
    expect(run("eval", SLICE, "--layers", "1"), EXIT_CAPTURE, "no layer 1; the file has layers 0 2 4 6")


@pytest.mark.parametrize("change, words", [
    ({"layers.0.value": (1, 39, 32)}, ["key and value must agree", "[1, 39, 32]"]),
    ({"layers.0.value": (2, 40, 32)}, ["key and value must agree"]),
    ({"layers.0.query": (2, 4, 64)}, ["query and key must agree in dim"]),
    ({"layers.0.key": (3, 40, 32), "layers.0.value": (3, 40, 32), "layers.0.query":
        (4, 4, 32)}, ["multiple of kv heads"]),
    ({"layers.0.query": (2, 41, 32)}, ["more queries than tokens"]),
    ({"layers.0.query": (2, 32)}, ["has shape [2, 32]"]),
    ({"layers.0.key": (1, 0, 32), "layers.0.value": (1, 0, 32)}, ["is empty"]),
    ({"layers.1.key": (1, 40, 64), "layers.1.value": (1, 40, 64), "layers.1.query":
        (2, 4, 64)}, ["layer 1 has", "--layers"]),
])
def test_shapes_that_disagree(tmp_path, change, words):
    tensors = make_capture()
    tensors.update({name: np.zeros(shape) for name, shape in change.items()})
    expect(run("eval", write_safetensors(tmp_path / "shapes.safetensors", tensors)), EXIT_CAPTURE, *words)


def test_a_wrong_element_type(tmp_path):
    expect(run("eval", write_safetensors(tmp_path / "double.safetensors", make_capture(), "F64")),
           EXIT_CAPTURE, "dtype F64")


def test_non_finite_values_are_located(tmp_path):
    for value in (np.nan, np.inf):
        tensors = make_capture(kv_heads=2)
        tensors["layers.0.value"][1, 7, 3] = value
        expect(run("eval", write_safetensors(tmp_path / "nan.safetensors", tensors)), EXIT_CAPTURE,
               "layers.0.value", "head 1, token 7, dim 3")


def test_the_library_s_reasons_are_shown(tmp_path):
    path = write_safetensors(tmp_path / "dim.safetensors", make_capture(dim=50))
    expect(run("eval", path, "--key-bits", 7), EXIT_LIBRARY, "head_dim", "50", "key_bits", "7")
    expect(run("eval", SLICE, "--page-size", 33), EXIT_LIBRARY, "page_size", "33")


def test_cuda_is_answered_by_the_library():
    cuda = [
        device for device in json.loads(run("info", "--json").stdout)["devices"] if device["type"] == "cuda"
    ]
    done = run("eval", SLICE, "--device", "cuda", "--layers", "0", "--quiet")
    if cuda:
        assert done.returncode == 0, done.stderr
    else:
        expect(done, EXIT_LIBRARY, "device_type", "CUDA")


def test_outputs_that_cannot_be_written(tmp_path):
    expect(run("eval", SLICE, "--plot", tmp_path / "none" / "p.svg"), EXIT_OUTPUT, "no such folder")
    small = write_safetensors(tmp_path / "small.safetensors", make_capture())
    done = run("eval", small, "--repeats", 1, "--json", "--plot", tmp_path)
    assert done.returncode == EXIT_OUTPUT and "cannot be written" in done.stderr


@pytest.mark.parametrize(
    "value", ["nan", "-nan", "inf", "-inf", "1e999", "-1", "-1e-300", "", "1x", "nan(3)"])
@pytest.mark.parametrize("option", ["--max-kl", "--max-error"])
def test_limits_are_finite_numbers(option, value):
    expect(run("eval", SLICE, f"{option}={value}"), EXIT_USAGE, option, f"'{value}'" if value else option)


def test_the_plot_never_replaces_the_capture(tmp_path):
    path = write_safetensors(tmp_path / "capture.safetensors", make_capture())
    whole = path.read_bytes()
    symbolic, hard, chain = tmp_path / "symbolic.svg", tmp_path / "hard.svg", tmp_path / "chain.svg"
    symbolic.symlink_to(path.name)
    os.link(path, hard)
    chain.symlink_to(symbolic)
    for plot in (path, symbolic, hard, chain, tmp_path / "." / path.name):
        for capture in (path, symbolic):
            expect(run("eval", capture, "--repeats", 1, "--plot", plot), EXIT_USAGE, "--plot", str(plot),
                   "is the capture itself")
            assert path.read_bytes() == whole


def test_a_plot_is_whole_or_as_it_was(tmp_path):
    path = write_safetensors(tmp_path / "capture.safetensors", make_capture())
    folder = tmp_path / "plots"
    folder.mkdir()
    real, link = folder / "real.svg", folder / "link.svg"
    real.write_text("before")
    real.chmod(0o640)
    link.symlink_to("real.svg")
    # A file may not grow beyond 1,000 bytes; the plot has more. The kernel's signal for it is ignored.
    done = run("eval", path, "--repeats", 1, "--json", "--plot", link, preexec_fn=small_files)
    assert done.returncode == EXIT_OUTPUT and "--plot" in done.stderr and "cannot be written" in done.stderr
    assert real.read_text() == "before" and sorted(os.listdir(folder)) == ["link.svg", "real.svg"]
    assert run("eval", path, "--repeats", 1, "--plot", link).returncode == 0
    assert real.read_text().startswith("<svg") and link.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(folder)) == ["link.svg", "real.svg"]
    done = run("eval", path, "--repeats", 1, "--quiet", "--plot", "/dev/stdout")
    assert done.returncode == 0 and done.stdout.endswith("</svg>\n")


def small_files():
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["eval", "--help"], ["--version"], ["info"], ["info", "--json"],
                  ["eval", SLICE, "--layers", "0", "--repeats", "1"],
                  ["eval", SLICE, "--layers", "0", "--repeats", "1", "--json"]])
def test_a_full_disk_under_stdout(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run([find_tool(), *map(str, arguments)],
                              stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == EXIT_OUTPUT and "stdout" in done.stderr, done
    done = subprocess.run(["sh", "-c", '"$0" "$@" >&-', find_tool(), *map(str, arguments)],
                          stderr=subprocess.PIPE, text=True)
    assert done.returncode == EXIT_OUTPUT and "stdout" in done.stderr, done
