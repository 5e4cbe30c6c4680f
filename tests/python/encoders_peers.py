"""Encoders by name: folders, files and repositories of a hub on loopback; TorchScript that only TorchScript can run.

    encoders_peers.py ENCODERS_TOOL
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile

from loopback_hub import LoopbackHub
from peers import need

torch, safetensors_torch, transformers = need("torch", "safetensors.torch", "transformers")
warnings.filterwarnings("ignore")
torch.set_num_threads(1)
tool = sys.argv[1]
CAPTIONS = ["A blue morpho butterfly", "", "two words"]


def run(*arguments, environment=None, code=0):
    result = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True,
                            env={**os.environ, **(environment or {})})
    assert result.returncode == code, (arguments, result.returncode, result.stderr)
    return result.stdout if code == 0 else result.stderr


class Encoder(torch.nn.Module):
    """Not Cosmos' network, but its shapes: the first frame alone, then groups of k."""

    def __init__(self, k, s, as_tuple):
        super().__init__()
        self.k, self.as_tuple = k, as_tuple
        self.embed = torch.nn.Conv3d(3, 16, (k, s, s), (k, s, s))

    def forward(self, x):
        x = torch.cat([x[:, :, :1].expand(-1, -1, self.k - 1, -1, -1), x], 2)
        z = self.embed(x) + torch.zeros(1, dtype=x.dtype)  # a device in the code
        return (z, torch.tensor(0)) if self.as_tuple else z


class Decoder(torch.nn.Module):
    def __init__(self, k, s):
        super().__init__()
        self.k = k
        self.embed = torch.nn.ConvTranspose3d(16, 3, (k, s, s), (k, s, s))

    def forward(self, z):
        return self.embed(z)[:, :, self.k - 1:]


def make_script(folder, k, s, dtype, as_tuple, freeze=False):
    torch.manual_seed(k + s)
    folder.mkdir(parents=True)
    encoder, decoder = Encoder(k, s, as_tuple).eval().to(dtype), Decoder(k, s).eval().to(dtype)
    with torch.no_grad():
        traced = [torch.jit.trace(encoder, torch.rand(1, 3, 17, 64, 64, dtype=dtype), check_trace=False),
                  torch.jit.trace(decoder, torch.rand(1, 16, 3, 8, 8, dtype=dtype), check_trace=False)]
    for name, module in zip(("encoder", "decoder"), traced):
        torch.jit.save(torch.jit.freeze(module) if freeze else module, str(folder / f"{name}.jit"))
    return encoder, decoder


def check_tokenizer(name, k, s, encoder, decoder, folder, dtype, environment=None):
    byte = torch.randint(0, 256, (3, 1, 2 * s, 4 * s), dtype=torch.uint8)
    clips = {"picture": byte, "clip": torch.rand(3, 1 + 2 * k, 4 * s, 2 * s) * 2 - 1}
    safetensors_torch.save_file(clips, folder / "clips.st")
    facts = json.loads(run("tokenizer", name, folder / "clips.st", folder / "out.st", environment=environment))
    assert (facts["channels"], facts["temporal"], facts["spatial"]) == (16, k, s), facts
    got = safetensors_torch.load_file(folder / "out.st")
    for label, clip in clips.items():
        pixels = clip.float() / 127.5 - 1 if clip.dtype == torch.uint8 else clip
        with torch.no_grad():
            latent = encoder(pixels[None].to(dtype))
            latent = latent[0] if isinstance(latent, tuple) else latent
            back = decoder(latent)
        for key, value in (("latent", latent[0]), ("pixels", back[0]), ("batch", torch.cat([latent, latent]))):
            result = got[f"{key}.{label}"]
            assert result.dtype == torch.float32 and result.shape == value.shape, (key, result.shape, value.shape)
            error = float((result - value.float()).abs().max() / value.float().abs().max())
            assert error < (1e-5 if dtype == torch.float32 else 2e-2), (name, key, error)
    return facts


def check_script(folder):
    cases = [(4, 8, torch.float32, True, False), (8, 16, torch.bfloat16, False, False), (8, 8, torch.float32, True, True)]
    for k, s, dtype, as_tuple, freeze in cases:
        place = folder / f"script-{k}-{s}"
        networks = make_script(place, k, s, dtype, as_tuple, freeze)
        if k == 8:
            torch.save((torch.zeros(256), torch.ones(256)), place / "mean_std.pt")
        facts = check_tokenizer(place, k, s, *networks, folder, dtype)
        assert facts["name"] == str(place.resolve()) and facts["statistics"] == (16 if k == 8 else 0), facts


def rewrite_code(path, old, new):
    with zipfile.ZipFile(path) as source:
        contents = [(name, source.read(name)) for name in source.namelist()]
    with zipfile.ZipFile(path, "w") as target:
        for name, content in contents:
            target.writestr(name, content.replace(old, new) if name.endswith(".py") else content)


def check_script_errors(folder):
    clips = folder / "clips.st"
    place = folder / "errors"
    make_script(place, 4, 8, torch.float32, True)
    shutil.copytree(place, folder / "device")
    rewrite_code(folder / "device" / "encoder.jit", b'torch.device("cpu")', b'torch.device("cuda:0")')
    message = run("tokenizer", folder / "device", clips, folder / "x.st", code=3)
    assert "encoder.jit" in message and "traced on another device" in message and message.count("\n") == 1, message
    (place / "decoder.jit").unlink()
    message = run("tokenizer", place, clips, folder / "x.st", code=3)
    assert "decoder.jit" in message, message
    shutil.copy(place / "encoder.jit", place / "decoder.jit")  # an encoder for a decoder
    message = run("tokenizer", place, clips, folder / "x.st", code=3)
    assert "decoder.jit" in message and message.count("\n") == 1, message
    content = (place / "encoder.jit").read_bytes()
    (place / "encoder.jit").write_bytes(content[: len(content) // 2])
    message = run("tokenizer", place, clips, folder / "x.st", code=3)
    assert "encoder.jit" in message and message.count("\n") == 1, message


def make_text_encoder(folder, spiece):
    config = transformers.T5Config(
        vocab_size=32128, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
    torch.manual_seed(3)
    model = transformers.T5EncoderModel(config).eval()
    model.save_pretrained(folder, max_shard_size="1MB")
    assert (folder / "model.safetensors.index.json").exists()
    shutil.copy(spiece, folder / "spiece.model")
    tokenizer = transformers.T5Tokenizer(str(spiece), legacy=True)
    with torch.no_grad():
        return [model(**tokenizer([caption], return_tensors="pt")).last_hidden_state[0] for caption in CAPTIONS]


def check_text(name, want, folder, environment=None):
    facts = json.loads(run("text", name, folder / "rows.st", *CAPTIONS, environment=environment))
    got = safetensors_torch.load_file(folder / "rows.st")
    for i, rows in enumerate(want):
        assert got[f"rows.{i}"].shape == rows.shape and torch.allclose(got[f"rows.{i}"], rows, atol=1e-5), i
    assert facts["width"] == 16
    return facts["name"]


def check_hub(folder, spiece):
    root, cache = folder / "root", folder / "cache"
    networks = make_script(root / "models" / "nvidia" / "Tiny-CV4x8x8", 4, 8, torch.float32, True)
    want = make_text_encoder(root / "models" / "google-t5" / "t5-tiny", spiece)
    with LoopbackHub(root) as hub:
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_CACHE": "", "HF_HUB_OFFLINE": "0",
                  "HF_TOKEN": "", "no_proxy": "127.0.0.1"}
        run("fetch", "nvidia/Tiny-CV4x8x8", "google-t5/t5-tiny", environment=online)
        message = run("fetch", "nvidia/None", "builtin", environment=online, code=3)
        assert "nvidia/None" in message and message.count("\n") == 1, message
    offline = {**online, "HF_HUB_OFFLINE": "1"}
    facts = check_tokenizer("nvidia/Tiny-CV4x8x8", 4, 8, *networks, folder, torch.float32, offline)
    assert facts["name"] == "nvidia/Tiny-CV4x8x8"
    assert check_text("google-t5/t5-tiny", want, folder, offline) == "google-t5/t5-tiny"
    message = run("text", "google-t5/t5-11b", folder / "x.st", "caption", environment=offline, code=3)
    assert "google-t5/t5-11b" in message and message.count("\n") == 1, message


def check_folders(folder, spiece):
    place = folder / "pipeline" / "text_encoder"
    want = make_text_encoder(place, spiece)
    assert check_text(place, want, folder) == str(place.resolve())
    (folder / "pipeline" / "tokenizer").mkdir()
    (place / "spiece.model").rename(folder / "pipeline" / "tokenizer" / "spiece.model")
    check_text(place, want, folder)
    (folder / "pipeline" / "model_index.json").write_text("{}")
    assert check_text(folder / "pipeline", want, folder) == str((folder / "pipeline").resolve())
    index = json.loads((place / "model.safetensors.index.json").read_text())
    shard = sorted(set(index["weight_map"].values()))[-1]
    (place / shard).unlink()
    message = run("text", place, folder / "x.st", "caption", code=3)
    assert shard in message, message


with tempfile.TemporaryDirectory(prefix="dfm-encoders-") as name:
    folder = pathlib.Path(name)
    check_script(folder)
    print("TorchScript ok")
    check_script_errors(folder)
    print("errors ok")
    data = os.environ.get("DFM_DATA_DIR") or pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"
    spiece = pathlib.Path(data) / "t5" / "spiece.model"
    if not spiece.exists():
        print(f"{spiece}: got no such file; hint: set DFM_DATA_DIR")
        sys.exit(77)
    check_hub(folder, spiece)
    print("hub ok")
    check_folders(folder, spiece)
    print("folders ok")
