"""dfm reads what torch.save and pickle.dumps write, every protocol, zip and legacy."""
import collections
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile

from peers import need

torch, numpy = need("torch", "numpy")
tool = sys.argv[1]
folder = tempfile.TemporaryDirectory(prefix="dfm-interop-")
files = []

CPP_NAMES = {
    torch.float32: "Float", torch.float64: "Double", torch.float16: "Half", torch.bfloat16: "BFloat16",
    torch.int64: "Long", torch.int32: "Int", torch.int16: "Short", torch.int8: "Char", torch.uint8: "Byte",
    torch.bool: "Bool", torch.uint16: "UInt16", torch.float8_e4m3fn: "Float8_e4m3fn", torch.complex64: "ComplexFloat",
}


def describe(value):
    if isinstance(value, numpy.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": len(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": CPP_NAMES[value]}
    if isinstance(value, numpy.ndarray):
        value = torch.from_numpy(numpy.ascontiguousarray(value))
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, torch.Tensor):
        value = value.detach()
        raw = value.contiguous().flatten()
        raw = raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b""
        stride = list(value.stride()) if value.numel() else list(torch.empty(value.shape).stride())
        return {"tensor": CPP_NAMES[value.dtype], "shape": list(value.shape), "stride": stride,
                "sha256": hashlib.sha256(raw).hexdigest()}
    if isinstance(value, (set, frozenset)):
        return {"list": sorted(describe(item) for item in value)}
    if isinstance(value, list):
        return {"list": [describe(item) for item in value]}
    if isinstance(value, tuple):
        return {"tuple": [describe(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[describe(key), describe(item)] for key, item in value.items()]}
    raise TypeError(type(value))


def check(path, value, what):
    """Notes what a file must hold; all are read in one call at the end."""
    files.append((path, describe(value), what))


def check_torch(value, what, **kwargs):
    path = f"{folder.name}/{len(files)}.pt"
    torch.save(value, path, **kwargs)
    check(path, value, what)


torch.manual_seed(0)
base = torch.randn(6, 8)
module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
everything = {
    "bf16": base.bfloat16(), "fp64": base.double(), "int64": torch.arange(5), "bool": torch.tensor([True, False]),
    "zero_dim": torch.tensor(3.5), "empty": torch.empty(0, 3), "view": base[1:3, 2:5], "transposed": base.t(),
    "shared": base, "expanded": torch.arange(3).expand(4, 3), "parameter": torch.nn.Parameter(base[0].clone()),
    "half": base.half(), "int8": torch.arange(4, dtype=torch.int8), "uint8": torch.arange(4, dtype=torch.uint8),
    "int16": torch.arange(4, dtype=torch.int16), "int32": torch.arange(4, dtype=torch.int32),
    "complex": torch.randn(3, dtype=torch.complex64),
}
plain = {
    "int": 3, "big": 2**40, "negative": -(2**33), "float": 0.1, "text": "caf\u00e9", "none": None, "true": True,
    "list": [1, [2, "x"]], "tuple": (1, 2, 3, 4), "nested": {"a": {"b": 1.5}}, 7: "integer key",
}
numpy_values = {
    "array": numpy.arange(6, dtype=numpy.float32).reshape(2, 3), "fortran": numpy.asfortranarray(numpy.ones((2, 3))),
    "f8": numpy.float64(0.25), "i4": numpy.int32(-7), "flag": numpy.array([True, False]), "bool": numpy.bool_(True),
}

check_torch(base, "bare tensor")
check_torch({**everything, **plain}, "dict")
check_torch(module.state_dict(), "state dict with _metadata")
check_torch(collections.OrderedDict(a=1, b=torch.ones(2)), "OrderedDict")
check_torch({"size": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cpu"), "bytes": b"\x00\xffx"},
            "torch values")
check_torch({"u16": torch.arange(4, dtype=torch.int32).to(torch.uint16), "f8": base.to(torch.float8_e4m3fn)}, "new dtypes")
check_torch(numpy_values, "numpy")
check_torch({"set": {1, 2, 3}}, "set")
for protocol in (2, 3, 4, 5):
    check_torch({"a": base, "o": collections.OrderedDict(x=1), "b": b"xyz", "n": numpy.arange(3)}, f"zip, protocol {protocol}",
                pickle_protocol=protocol)
check_torch(everything, "legacy", _use_new_zipfile_serialization=False)
check_torch(module.state_dict(), "legacy state dict", _use_new_zipfile_serialization=False)
check_torch(base.bfloat16(), "legacy bare tensor", _use_new_zipfile_serialization=False)

for protocol in (2, 3, 4, 5):
    for value in (base.bfloat16(), base[1:3, 2:5], torch.zeros(1, 64, 1024).bfloat16(), torch.tensor(1.5), plain,
                  {"a": base, "b": [base.double()]}, numpy_values, b"bytes", bytearray(b"array"), {4, 5},
                  module.state_dict()):
        path = f"{folder.name}/{len(files)}.pickle"
        with open(path, "wb") as file:
            file.write(pickle.dumps(value, protocol))
        check(path, value, f"pickle.dumps, protocol {protocol}: {type(value)}")


run = subprocess.run([tool, "describe", *(path for path, _, _ in files)], capture_output=True, text=True)
lines = run.stdout.splitlines()
for line, (path, want, what) in zip(lines, files):
    got = json.loads(line)
    assert got == want, f"{what}:\n got {got}\nwant {want}"
assert run.returncode == 0, f"{files[len(lines)][2]}: {run.stderr}"
assert len(lines) == len(files)


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {folder.name}/executed",)


with open(f"{folder.name}/evil.pickle", "wb") as file:
    file.write(pickle.dumps(Evil()))
torch.save({"a": Evil()}, f"{folder.name}/evil.pt")
torch.save(Evil(), f"{folder.name}/evil_legacy.pt", _use_new_zipfile_serialization=False)
for name in ("evil.pickle", "evil.pt", "evil_legacy.pt"):
    run = subprocess.run([tool, "describe", f"{folder.name}/{name}"], capture_output=True, text=True)
    assert run.returncode == 3 and "posix.system" in run.stderr, run
    assert not os.path.exists(f"{folder.name}/executed")
print("read", len(files), "files")
