# SPDX-License-Identifier: Apache-2.0
"""Puts libraries that define what torch's own libraries need, and do nothing, where CUDA's are missing.

For the interpreter that runs it, so that `import torch` works for computing on the CPU. A library is made for
every name that torch's libraries need, that begins as CUDA's do, and that no package has brought. Its symbols
carry the versions that torch asks for.
"""
import re
import subprocess
import sysconfig
from pathlib import Path

SITE = Path(sysconfig.get_paths()["purelib"])
CUDA = re.compile(r"lib(cu|nccl|nvrtc|nvshmem|nvjitlink)")
UNVERSIONED = {"libnccl": "nccl", "libcufile": "cuFile", "libcusparseLt": "cusparseLt"}


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout


def main():
    folder = SITE / "torch" / "lib"
    needed, version, undefined = set(), {}, set()
    for library in folder.glob("lib*.so*"):
        if not library.name.startswith(("libtorch", "libc10", "libshm", "libcaffe")):
            continue
        text = run("readelf", "-dVW", str(library))
        needed |= {name for name in re.findall(r"NEEDED.*\[(\S+)\]", text) if CUDA.match(name)}
        for name, versions in re.findall(r"File: (\S+)\s+Cnt: \d+((?:\n.*Name: .*)+)", text):
            version.setdefault(name, set()).update(re.findall(r"Name: (\S+)", versions))
        undefined |= set(re.findall(r"^ +U (\S+)$", run("nm", "-D", "--undefined-only", str(library)), re.M))
    brought = {path.name for path in SITE.glob("nvidia/**/lib*.so*")}
    for name in sorted(needed - brought):
        own = next(iter(version.get(name, ())), None)
        begins = UNVERSIONED.get(name.split(".")[0], "\0")
        symbols = sorted(s.split("@")[0] for s in undefined
                         if (s.endswith("@" + own) if own else s.startswith(begins)))
        script = folder / "standin.map"
        script.write_text(f"{own or ''} {{ global: *; }};\n")
        source = "".join(f"int {symbol};\n" for symbol in symbols) or "int standin;\n"
        run("cc", "-shared", "-x", "c", "-", "-o", str(folder / name), f"-Wl,-soname,{name}",
            f"-Wl,--version-script={script}", input=source)
        script.unlink()
        print(f"{name}: stands in for {len(symbols)} symbols")


if __name__ == "__main__":
    main()
