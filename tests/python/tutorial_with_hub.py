"""The three commands of DFM's tutorial as a user types them, with a hub on loopback that has small random encoders under the
names of the real ones; the stored latents and text rows against diffusers and transformers.

    tutorial_with_hub.py DFM
"""
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile
import tempfile

from cosmos_matches_diffusers import module_tree, native_name
from loopback_hub import LoopbackHub
from peers import need

torch, diffusers, transformers, pyarrow, parquet, numpy, image, sentencepiece = need(
    "torch", "diffusers", "transformers", "pyarrow", "pyarrow.parquet", "numpy", "PIL.Image", "sentencepiece")
torch.set_num_threads(1)
dfm = sys.argv[1]
NAMES = ["Papilio ulysses", "Danaus plexippus", "Morpho menelaus", "Morpho menelaus", "Vanessa atalanta"]
BFLOAT16 = 2**-8  # half a unit in the last place, relative


def make_dataset(folder):
    """The columns that matter of the real set; the first picture needs no resizing."""
    folder.mkdir(parents=True)
    generator = numpy.random.default_rng(0)
    cells = []
    for number in range(len(NAMES)):
        small = image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=numpy.uint8))
        picture = small.resize([(512, 512), (640, 520), (530, 700), (512, 512), (600, 512)][number], image.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG" if number == 0 else "JPEG")
        cells.append({"bytes": buffer.getvalue(), "path": f"{number}.jpg"})
    table = pyarrow.table({"image_url": ["https://ids.si.edu/x.jpg"] * len(NAMES), "image_alt": ["a specimen"] * len(NAMES),
                           "name": NAMES, "image": cells, "sim_score": [0.5] * len(NAMES)})
    (folder / "data").mkdir()
    parquet.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("butterflies\n")
    return image.open(io.BytesIO(cells[0]["bytes"]))


def make_tokenizer(folder):
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKLCosmos(encoder_block_out_channels=(16, 32, 48), decode_block_out_channels=(32, 48, 40),
                                        temporal_compression_ratio=4).eval()
    native = {native_name(k, 2): v.detach().clone().contiguous() for k, v in vae.state_dict().items()}
    for half, quant in (("encoder.", "quant"), ("decoder.", "post_quant")):
        own = {k: v for k, v in native.items() if k.startswith((half, quant))}
        torch.jit.trace(module_tree(torch, own), torch.zeros(1), check_trace=False).save(str(folder / f"{half}jit"))
    (folder / "config.json").write_text('{"architectures": ["CausalContinuousVideoTokenizer"]}')
    return vae


def make_text_encoder(folder):
    folder.mkdir(parents=True)
    torch.manual_seed(2)
    config = transformers.T5Config(vocab_size=32128, d_model=64, d_kv=24, d_ff=96, num_layers=2, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config).eval()
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)  # as the real one
    real = pathlib.Path(os.environ.get("DFM_DATA_DIR", "-")) / "t5" / "spiece.model"
    if real.exists():
        (folder / "spiece.model").write_bytes(real.read_bytes())
    else:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(NAMES * 20), model_prefix=str(folder / "spiece"), vocab_size=60, pad_id=0, eos_id=1, unk_id=2,
            bos_id=-1, hard_vocab_limit=False, minloglevel=2)
        (folder / "spiece.vocab").unlink()
    return model, transformers.T5Tokenizer(str(folder / "spiece.model"), legacy=True)


def run(work, environment, *command, code=0):
    result = subprocess.run(command, cwd=work, env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.returncode == code, (command, result.returncode, result.stdout, result.stderr)
    return result.stdout + result.stderr


def samples(folder):
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, part = member.name.split(".", 1)
                found.setdefault(key, {})[part] = tar.extractfile(member).read()
    return {key: (torch.load(io.BytesIO(parts["pth"])), pickle.loads(parts["pickle"]), json.loads(parts["json"]))
            for key, parts in found.items()}


def check_samples(found, picture, vae, t5, tokenizer):
    assert sorted(facts["caption"] for _, _, facts in found.values()) == sorted(NAMES), found
    latent, _, facts = found["000000"]
    assert latent.shape == (1, 16, 1, 64, 64) and latent.dtype == torch.bfloat16, latent.shape
    assert (facts["image_height"], facts["image_width"]) == (512, 512), facts
    pixels = torch.tensor(numpy.array(picture.convert("RGB"))).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    with torch.no_grad():
        want = vae.encode(pixels).latent_dist.mode()
    error = float((latent.float() - want).abs().max() / want.abs().max())
    assert error < 1e-4 + BFLOAT16, f"latent: {error}"
    for _, text, facts in found.values():
        ids = tokenizer(facts["caption"], return_tensors="pt").input_ids
        with torch.no_grad():
            want = t5.encoder(ids).last_hidden_state[0]
        assert text.shape == (1, 512, 64) and facts["text_length"] == len(want), facts
        error = float((text[0, : len(want)].float() - want).abs().max() / want.abs().max())
        assert error < 1e-4 + BFLOAT16, f"text rows of {facts['caption']}: {error}"
        assert not text[0, len(want):].any()


def main():
    with tempfile.TemporaryDirectory(prefix="dfm-tutorial-") as name:
        work = pathlib.Path(name)
        root = work / "hub"
        picture = make_dataset(root / "datasets" / "huggan" / "smithsonian_butterflies_subset")
        vae = make_tokenizer(root / "models" / "nvidia" / "Cosmos-0.1-Tokenizer-CV4x8x8")
        t5, tokenizer = make_text_encoder(root / "models" / "google-t5" / "t5-11b")
        common = {"HF_HOME": str(work / "home"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0"}
        out = "butterfly_webdataset"
        with LoopbackHub(root) as hub:
            online = {**common, "HF_ENDPOINT": hub.endpoint}
            print(run(work, online, dfm, "prepare", "--output-dir", out))
            one = samples(work / out)
            check_samples(one, picture, vae, t5, tokenizer)
            # Over ranks: the same samples, nothing is fetched again.
            files = [entry for entry in hub.log if entry[1] == "GET" and entry[2].endswith((".jit", ".bin", ".parquet"))]
            assert len(files) == 4, files
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", "2"]
            run(work, online, *torchrun, dfm, "prepare", "--output-dir", "over_ranks")
            two = samples(work / "over_ranks")
            check_samples(two, picture, vae, t5, tokenizer)
            assert one.keys() == two.keys()
            again = [entry for entry in hub.log if entry[1] == "GET" and entry[2].endswith((".jit", ".bin", ".parquet"))]
            assert len(again) == 4, again
            assert not hub.violations, hub.violations
        # From here on the hub is gone: what was fetched is enough.
        offline = {**common, "HF_HUB_OFFLINE": "1"}
        log = run(work, offline, dfm, "train", "--dataset-path", out, "model.num_layers=2", "model.hidden_size=48",
                  "model.num_attention_heads=2", "train.train_iters=3", "train.global_batch_size=4", "checkpoint.save=run")
        losses = [json.loads(line)["loss"] for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
        assert len(losses) == 3 and all(0 < loss < 100 for loss in losses), log
        log = run(work, offline, dfm, "generate", "--prompt", "A blue morpho butterfly in a rainforest", "--checkpoint", "run",
                  "--video-save-path", "x.mp4", "--height", "64", "--width", "96", "--num-video-frames", "5", "--num-steps", "2")
        assert (work / "idx=0_rank=0_x.mp4").stat().st_size > 1000, log
        facts = json.loads(run(work, offline, dfm, "inspect", out, "--json"))
        assert "google-t5/t5-11b" in json.dumps(facts) and "nvidia/Cosmos-0.1-Tokenizer-CV4x8x8" in json.dumps(facts), facts
        # A machine that never saw them: one line, and nothing written.
        message = run(work, {**offline, "HF_HOME": str(work / "empty")}, dfm, "prepare", "--output-dir", "none", code=3)
        assert "--tokenizer builtin --text-encoder builtin" in message and message.count("error:") == 1, message
        assert not (work / "none").exists()


if __name__ == "__main__":
    main()
