"""Weights as PyTorch, safetensors and transformers write them are read by dfm; safetensors of dfm by the others."""
import collections
import hashlib
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import warnings

from peers import need, same

torch, safetensors_torch, transformers = need("torch", "safetensors.torch", "transformers")
warnings.filterwarnings("ignore")
torch.set_num_threads(1)
tool = sys.argv[1]

NAMES = {
    torch.float32: "Float", torch.float64: "Double", torch.float16: "Half", torch.bfloat16: "BFloat16",
    torch.int64: "Long", torch.int32: "Int", torch.int16: "Short", torch.int8: "Char", torch.uint8: "Byte",
    torch.bool: "Bool", torch.uint16: "UInt16", torch.uint32: "UInt32", torch.uint64: "UInt64",
    torch.float8_e4m3fn: "Float8_e4m3fn", torch.float8_e5m2: "Float8_e5m2", torch.complex64: "ComplexFloat",
    torch.float8_e8m0fnu: "Float8_e8m0fnu",
}


def run(*arguments):
    result = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def raw(tensor):
    tensor = tensor.detach().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def facts(tensors):
    return {
        name: {"dtype": NAMES[t.dtype], "shape": list(t.shape), "sha256": hashlib.sha256(raw(t)).hexdigest()}
        for name, t in tensors.items()
    }


def check(path, tensors):
    got, want = json.loads(run("list", path)), facts(tensors)
    assert got == want, f"{path}: {sorted(set(got) ^ set(want))[:5] or [n for n in want if got[n] != want[n]][:5]}"


def many_types():
    torch.manual_seed(0)
    result = {"scalar": torch.tensor(2.5), "none": torch.empty(0, 3), "deep.er.name": torch.randn(3, 5, 7)}
    for dtype in NAMES:
        whole = torch.arange(12).remainder(2 if dtype == torch.bool else 100).reshape(3, 4)
        values = torch.ones(3, 4) if dtype == torch.float8_e8m0fnu else whole
        result[str(dtype).removeprefix("torch.")] = values.to(dtype)
    return result


class Conv(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv3d = torch.nn.Conv3d(channels, 4, 1)

    def forward(self, x):
        return self.conv3d(x)


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = torch.nn.Sequential(Conv(3), Conv(4))
        self.register_buffer("scale", torch.arange(1.0, 3.0))

    def forward(self, x):
        return self.conv_in(x) * self.scale.sum(), torch.tensor([0, 0])


class Autoencoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()

    def forward(self, x):
        return self.encoder(x)


def check_safetensors(folder):
    tensors = many_types()
    theirs, ours = folder / "theirs.safetensors", folder / "ours.safetensors"
    safetensors_torch.save_file(tensors, theirs, metadata={"format": "pt"})
    check(theirs, tensors)
    run("write", theirs, ours)
    assert ours.read_bytes() == theirs.read_bytes(), "safetensors: other bytes than the library's"
    back = safetensors_torch.load_file(ours)
    assert all(raw(back[name]) == raw(tensor) for name, tensor in tensors.items())


def check_torch(folder):
    base = torch.randn(6, 8, dtype=torch.float64)
    tensors = {k: v for k, v in many_types().items() if not k.startswith(("uint16", "uint32", "uint64", "float8"))}
    tensors |= {"turned": base.t(), "rows": base[2:4], "columns": base[:, 3:5], "again": base}
    torch.save(tensors, folder / "zip.bin")
    check(folder / "zip.bin", tensors)
    for pad in range(8):  # data of every alignment
        old = {"pad": "x" * pad, **tensors}
        torch.save(old, folder / "legacy.bin", _use_new_zipfile_serialization=False)
        check(folder / "legacy.bin", tensors)
    nested = {"state_dict": {"w": torch.ones(2)}, "epoch": 3, "args": Namespace(a=1)}
    torch.save(nested, folder / "nested.bin")
    check(folder / "nested.bin", {"state_dict.w": torch.ones(2)})
    pair = (torch.ones(3), torch.zeros(3))
    torch.save({"mean": pair[0], "std": pair[1]}, folder / "mean_std.pt")
    check(folder / "mean_std.pt", {"mean": pair[0], "std": pair[1]})


class Namespace:
    def __init__(self, **values):
        self.__dict__.update(values)


def check_script(folder):
    for dtype in (torch.float32, torch.bfloat16):
        model = Autoencoder().eval().to(dtype)
        x = torch.randn(1, 3, 1, 4, 4, dtype=dtype)
        traced = torch.jit.trace(model, x, check_trace=False)
        traced.save(folder / "traced.jit")
        check(folder / "traced.jit", model.state_dict())
        torch.jit.save(torch.jit.script(model), str(folder / "scripted.jit"))
        check(folder / "scripted.jit", model.state_dict())
        frozen = torch.jit.freeze(traced, optimize_numerics=False)  # else scales are folded into weights
        torch.jit.save(frozen, str(folder / "frozen.jit"))
        got = json.loads(run("list", folder / "frozen.jit"))
        assert all(name.startswith("CONSTANTS.c") for name in got), got
        want = {value["sha256"] for name, value in facts(model.state_dict()).items() if "conv3d" in name}
        assert want <= {value["sha256"] for value in got.values()}


def check_transformers(folder):
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
    torch.manual_seed(1)
    model = transformers.T5EncoderModel(config)
    state = model.state_dict()
    del state["encoder.embed_tokens.weight"]  # tied: written once
    model.save_pretrained(folder / "one")
    check(folder / "one" / "model.safetensors", state)
    model.save_pretrained(folder / "sharded", max_shard_size="4KB")
    assert len(list((folder / "sharded").glob("model-*"))) > 2
    check(folder / "sharded" / "model.safetensors.index.json", state)
    everything = model.state_dict()  # .bin files hold tied tensors under each name
    model.save_pretrained(folder / "bin", safe_serialization=False)
    check(folder / "bin" / "pytorch_model.bin", everything)
    model.save_pretrained(folder / "shardedbin", safe_serialization=False, max_shard_size="4KB")
    check(folder / "shardedbin" / "pytorch_model.bin.index.json", everything)


class Storage:
    """A storage of zeros that is never in memory."""

    def __init__(self, key, numel):
        self.key, self.numel = key, numel


class Rows:
    """What torch.save would write of a tensor over that storage."""

    def __init__(self, storage, rows):
        self.storage, self.rows = storage, rows

    def __reduce__(self):
        width = self.storage.numel // self.rows
        arguments = (self.storage, 0, (self.rows, width), (width, 1), False, collections.OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class LegacyPickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return ("storage", torch.FloatStorage, obj.key, "cpu", obj.numel, None)
        return None


def check_opening_cost(folder):
    """A legacy file of 6 GB, sparse: opening must read its index, reading one tensor no other."""
    path, large = folder / "big.bin", 2**26
    storages = [Storage(str(i), large) for i in range(24)]
    names = [f"layer.{i}.weight" for i in range(24)]
    with open(path, "wb") as stream:
        for header in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION):
            pickle.dump(header, stream, protocol=2)
        pickle.dump({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, stream, protocol=2)
        state = {name: Rows(storage, 4) for name, storage in zip(names, storages)}
        LegacyPickler(stream, protocol=2).dump(collections.OrderedDict(state))
        pickle.dump([storage.key for storage in storages], stream, protocol=2)
        for _ in storages:
            stream.write(large.to_bytes(8, "little"))
            stream.seek(4 * large, os.SEEK_CUR)
        stream.truncate()
    assert path.stat().st_size >= 6 * 2**30
    got = json.loads(run("open", path, names[3]))
    assert got["bytes"] == 4 * large and got["sum"] == 0, got
    assert got["open"] < 16 * 2**20 and got["open_mapped"] < 64 * 2**20, got
    assert got["read"] < 4 * large + 64 * 2**20, got
    print(f"opening {path.stat().st_size / 2**30:.1f} GB took {got['open'] / 2**20:.1f} MB, reading one tensor of "
          f"{got['bytes'] / 2**20:.0f} MB {got['read'] / 2**20:.0f} MB")


with tempfile.TemporaryDirectory(prefix="dfm-weights-") as name:
    for test in (check_safetensors, check_torch, check_script, check_transformers, check_opening_cost):
        folder = pathlib.Path(name) / test.__name__
        folder.mkdir()
        test(folder)
        print(test.__name__, "ok")
