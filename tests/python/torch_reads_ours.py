"""torch.load (weights_only, mmap), pickle.loads, zipfile and unzip read what dfm writes."""
import glob
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

from peers import need, pattern, same, written_folder

(torch,) = need("torch")
folder = written_folder(sys.argv[1])

names = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
want = {name: pattern([3, 4, 5], getattr(torch, name), 3) for name in names}
want["scalar"] = pattern([], torch.float32, 3)
want["empty"] = pattern([0, 4], torch.float32, 3)
for name, tensor in want.items():
    path = f"{folder.name}/{name}.pth"
    for mmap in (False, True):
        assert same(torch.load(path, weights_only=True, mmap=mmap), tensor), (name, mmap)
    with open(path, "rb") as file:
        assert same(torch.load(file, weights_only=True), tensor), name
    with open(f"{folder.name}/{name}.pickle", "rb") as file:
        assert same(pickle.loads(file.read()), tensor), name
loaded = torch.load(f"{folder.name}/uint16.pth", weights_only=True)
assert same(loaded, pattern([3, 4, 5], torch.uint16, 3))
assert loaded.untyped_storage().nbytes() == 120

path = f"{folder.name}/tensors.pt"
for mmap in (False, True):
    file = torch.load(path, weights_only=True, mmap=mmap)
    assert type(file) is dict
    for name in names:
        assert same(file.pop("all." + name), want[name]), name
    assert same(file.pop("large"), pattern([1500000], torch.float32, 5))
    assert same(file.pop("scalar"), pattern([], torch.float64, 3))
    assert same(file.pop("empty"), want["empty"])
    assert file == {"iteration": 2**40, "negative": -5, "rate": 0.1, "done": False, "name": "caf\u00e9"}, file
    assert type(file["done"]) is bool

for path in glob.glob(f"{folder.name}/*.p*t*"):
    if path.endswith(".pickle"):
        continue
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None, path
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
    if shutil.which("unzip"):
        subprocess.run(["unzip", "-tqq", path], check=True)
print("read", len(os.listdir(folder.name)), "files")
