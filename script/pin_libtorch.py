#!/usr/bin/env python3
"""Writes script/requirements-libtorch.txt: the wheels whose C++ libraries dfm links (torch, pyarrow) and all they need, pinned by
version and by sha256.

Run it in any folder with a pip of 23 or newer, after changing PINS (and DFM_TORCH_VERSION in cmake/LibTorch.cmake):
    python3 script/pin_libtorch.py
Nothing is downloaded but metadata. The hashes are those of the wheels for Linux x86_64 and every CPython in PYTHONS; one
version of each package serves them all, so the newest release is not always taken.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
PINS = [
    "torch==2.11.0",
    "cuda-bindings==13.4.4",
    "cuda-pathfinder==1.8.3",
    "filelock==4.1.0",
    "fsspec==2026.9.0",
    "Jinja2==3.1.6",
    "MarkupSafe==3.0.4",
    "mpmath==1.3.0",
    "networkx==3.4.2",
    "pyarrow==26.0.1",
    "setuptools==81.0.0",
    "sympy==1.14.0",
    "typing_extensions==4.16.0",
]
GLIBC_MINORS = [5, 12, 17, 18, 20, 24, 25, 26, 27, 28]


def resolve(python: str) -> list[dict]:
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC_MINORS]
    platforms += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64", "linux_x86_64"]
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--target", folder, "--python-version", python, "--only-binary=:all:"]
        command += [word for platform in platforms for word in ("--platform", platform)]
        subprocess.run(command + PINS, check=True)
        return json.loads(report.read_text())["install"]


def main() -> None:
    hashes: dict[tuple[str, str], set[str]] = {}
    for python in PYTHONS:
        for item in resolve(python):
            name = item["metadata"]["name"].lower().replace("_", "-")
            key = (name, item["metadata"]["version"])
            hashes.setdefault(key, set()).add(item["download_info"]["archive_info"]["hashes"]["sha256"])
    names = [name for name, _ in hashes]
    several = {name for name in names if names.count(name) > 1}
    if several:
        sys.exit(f"these have another version for another Python, pin one that serves all: {', '.join(sorted(several))}")
    lines = ["# Written by script/pin_libtorch.py: wheels for Linux x86_64, CPython " + ", ".join(PYTHONS)]
    for (name, version), digests in sorted(hashes.items()):
        lines.append(f"{name}=={version} \\")
        lines.append(" \\\n".join(f"    --hash=sha256:{digest}" for digest in sorted(digests)))
    target = pathlib.Path(__file__).with_name("requirements-libtorch.txt")
    target.write_text("\n".join(lines) + "\n")
    print(f"{target}: {len(hashes)} packages")


if __name__ == "__main__":
    main()
