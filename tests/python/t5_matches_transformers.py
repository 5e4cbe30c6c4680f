"""T5 against transformers: ids of texts in many scripts, and the encoder's rows for small random models of each kind, from
each kind of weight file.

    t5_matches_transformers.py T5_TOOL TEXTS.json DATA_FOLDER
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

from peers import need

torch, safetensors_torch, transformers, _, _ = need("torch", "safetensors.torch", "transformers", "sentencepiece", "google.protobuf")
warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
torch.set_num_threads(2)
tool, texts_file, data = sys.argv[1:4]
spiece = pathlib.Path(os.environ.get("DFM_DATA_DIR", data)) / "t5" / "spiece.model"
if not spiece.exists():
    print(f"missing: {spiece}; hint: set DFM_DATA_DIR to a folder with t5/spiece.model")
    sys.exit(1 if os.environ.get("CI") == "true" else 77)

CAPTIONS = ["A blue morpho butterfly in a rainforest", "", "two", "A blue morpho butterfly in a rainforest", "three words here",
            "the end </s> and <extra_id_0> more", "Ein Schmetterling über dem See, ganz nah", "one two three four five six seven",
            "butterfly " * 700, "over the wide green meadow " * 40]
SHAPES = {  # one of each published kind, with fewer layers
    "small": dict(d_model=512, d_kv=64, d_ff=2048, num_heads=8, num_layers=6),
    "base": dict(d_model=768, d_kv=64, d_ff=3072, num_heads=12, num_layers=2),
    "11b, shrunk": dict(d_model=64, d_kv=128, d_ff=512, num_heads=6, num_layers=3),
    "v1.1": dict(d_model=256, d_kv=64, d_ff=640, num_heads=6, num_layers=3, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "other numbers": dict(d_model=40, d_kv=24, d_ff=72, num_heads=3, num_layers=2, feed_forward_proj="gated-silu",
                          relative_attention_num_buckets=16, relative_attention_max_distance=64, layer_norm_epsilon=1e-3),
}
failures = []


def check(good, message):
    print(("ok     " if good else "FAILED ") + message, flush=True)
    if not good:
        failures.append(message)


def run(*arguments, code=0):
    result = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == code, (arguments, result.returncode, result.stderr)
    return result.stdout if code == 0 else result.stderr


def make_tokenizers(folder):
    """google-t5's repositories set a leading space; T5TokenizerFast made from spiece.model alone would not in 4.57.1."""
    fast = transformers.T5TokenizerFast(vocab_file=str(spiece), add_prefix_space=True)
    fast.backend_tokenizer.save(str(folder / "tokenizer.json"))
    # The older form that google-t5 publishes: words parted first, nothing but the character map to normalise.
    description = json.loads((folder / "tokenizer.json").read_text())
    description["normalizer"] = description["normalizer"]["normalizers"][0]
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True}]}
    for token in description["added_tokens"][3:]:
        token["lstrip"] = token["rstrip"] = True
    (folder / "published.json").write_text(json.dumps(description))
    description["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True}
    (folder / "first.json").write_text(json.dumps(description))
    (folder / "bad.json").write_text(json.dumps({**description, "pre_tokenizer": {"type": "ByteLevel"}}))
    files = {"spiece.model": spiece, **{name: folder / name for name in ("tokenizer.json", "published.json", "first.json")}}
    return {name: (path, fast if name in ("spiece.model", "tokenizer.json") else
                   transformers.T5TokenizerFast(tokenizer_file=str(path))) for name, path in files.items()}


def compare_ids(folder):
    content = json.loads(pathlib.Path(texts_file).read_text(encoding="utf-8"))
    texts = content["texts"] + [text * times for text, times in content["repeated"]]
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    for name, (path, peer) in make_tokenizers(folder).items():
        for max_length in (512, 7):
            got = json.loads(run("ids", path, folder / "texts.json", max_length))
            want = [peer(text, truncation=True, max_length=max_length).input_ids for text in texts]
            wrong = [i for i in range(len(texts)) if got[i] != want[i]]
            for i in wrong[:8]:
                print(f"  {texts[i][:60]!r}: got {got[i][:12]}, want {want[i][:12]}")
            check(not wrong, f"ids of {name}, at most {max_length}: {len(texts) - len(wrong)} of {len(texts)} texts equal")
            if name == "spiece.model" and max_length == 512:
                fast = want
    # The two of Hugging Face differ where marks pile up or special tokens appear only after normalisation.
    slow = transformers.T5Tokenizer(str(spiece))
    same = sum(slow(text, truncation=True, max_length=512).input_ids == ids for text, ids in zip(texts, fast))
    print(f"       T5Tokenizer agrees with T5TokenizerFast on {same} of {len(texts)} texts")
    check(same > 0.9 * len(texts), "the slow tokenizer agrees on ordinary text")
    message = run("ids", folder / "bad.json", folder / "texts.json", 512, code=3)
    check("ByteLevel" in message and message.count("\n") == 1, f"a tokenizer of another kind: {message.strip()[-120:]}")


def reference(model, tokenizer, dtype=torch.float32):
    """Padded to the longest and masked, as everybody does; the rows of padding left out."""
    batch = tokenizer(CAPTIONS, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        rows = model.to(dtype).get_encoder()(**batch).last_hidden_state.float()
    return [rows[i, :n] for i, n in enumerate(batch.attention_mask.sum(1).tolist())]


def worst(got, want):
    assert len(got) == len(want)
    return max(float((got[str(i)] - row).abs().max() / row.abs().max()) for i, row in enumerate(want))


def encode(folder, weights, precision="fp32"):
    run("encode", folder, weights, precision, folder.parent / "captions.json", folder.parent / "rows.safetensors")
    return safetensors_torch.load_file(folder.parent / "rows.safetensors")


def make_model(folder, seed, **shape):
    torch.manual_seed(seed)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(num_decoder_layers=1, **shape)).eval()
    with torch.no_grad():  # norms of ones and even biases would hide mistakes
        for name, p in model.named_parameters():
            if "layer_norm" in name:
                p.uniform_(0.5, 1.5)
            if "relative_attention_bias" in name:
                p.normal_(0, 1)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    shutil.copy(spiece, folder / "spiece.model")
    return model


def compare_models(root, tokenizer):
    (root / "captions.json").write_text(json.dumps(CAPTIONS))
    folder = root / "model"
    for seed, (name, shape) in enumerate(SHAPES.items()):
        model = make_model(folder, seed, **shape)
        want = reference(model, tokenizer)
        error = worst(encode(folder, folder / "model.safetensors"), want)
        check(error < 1e-5, f"{name}, fp32: {error:.1e} of the largest value")
        ours, theirs = worst(encode(folder, folder / "model.safetensors", "bf16"), want), None
        theirs = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(reference(model, tokenizer, torch.bfloat16), want))
        check(ours < max(1.2 * theirs, 0.02), f"{name}, bf16: {ours:.1e} from fp32; transformers in bf16: {theirs:.1e}")


def compare_files(root, tokenizer):
    folder = root / "model"
    model = make_model(folder, 9, **SHAPES["11b, shrunk"])
    want = reference(model, tokenizer)
    state = model.state_dict()
    half = {k: v.half() for k, v in state.items()}

    def saved(name, save):
        path = folder / name
        save(path)
        return path

    sharded = folder / "sharded"
    model.save_pretrained(sharded, max_shard_size="1MB")
    bin_sharded = folder / "bin_sharded"
    model.save_pretrained(bin_sharded, max_shard_size="1MB", safe_serialization=False)
    stack = {k.removeprefix("encoder."): v.clone() for k, v in state.items() if k.startswith("encoder.")}
    encoder = transformers.T5EncoderModel(model.config)
    encoder.load_state_dict({k: v for k, v in state.items() if k.startswith(("shared.", "encoder."))})
    encoder.save_pretrained(folder / "encoder_only")
    alias = {k: v.clone() for k, v in state.items() if k.startswith("encoder.")}
    files = {
        "sharded safetensors": sharded / "model.safetensors.index.json",
        "sharded .bin": bin_sharded / "pytorch_model.bin.index.json",
        "zip .bin": saved("zip.bin", lambda p: torch.save(state, p)),
        "legacy .bin": saved("legacy.bin", lambda p: torch.save(state, p, _use_new_zipfile_serialization=False)),
        "T5EncoderModel": folder / "encoder_only" / "model.safetensors",
        "T5Stack": saved("stack.bin", lambda p: torch.save(stack, p)),
        "embed_tokens only": saved("alias.safetensors", lambda p: safetensors_torch.save_file(alias, p)),
    }
    for name, path in files.items():
        error = worst(encode(folder, path), want)
        check(error < 1e-5, f"{name}: {error:.1e}")
    error = worst(encode(folder, saved("half.bin", lambda p: torch.save(half, p))), want)
    check(error < 1e-2, f"fp16 weights in fp32: {error:.1e}")
    compare_misfits(folder, state, saved)


def compare_misfits(folder, state, saved):
    def refused(name, tensors, *words):
        path = saved("bad.bin", lambda p: torch.save(tensors, p))
        message = run("encode", folder, path, "fp32", folder.parent / "captions.json", folder / "none", code=3)
        good = all(word in message for word in words) and message.count("\n") == 1 and not (folder / "none").exists()
        check(good, f"{name}: {message.strip()[:160]}")

    wo = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    refused("a missing tensor", {k: v for k, v in state.items() if k != wo}, wo, "got none")
    narrow = {k: (v[:, :-1] if k.endswith(("wo.weight", ".q.weight")) else v) for k, v in state.items()}
    refused("other shapes", narrow, "encoder.block.0.layer.0.SelfAttention.q.weight: got [768, 63], want [768, 64]", "and 5 more")
    refused("a block too many", {**state, "encoder.block.3.layer.0.layer_norm.weight": torch.ones(64)}, "encoder.block.3.")
    refused("whole numbers", {**state, wo: state[wo].to(torch.int8)}, wo, "want fp32")
    refused("not a number", {**state, wo: state[wo] * float("nan")}, "not finite", "A blue morpho")


def main():
    with tempfile.TemporaryDirectory(prefix="dfm-t5-") as name:
        root = pathlib.Path(name)
        compare_ids(root)
        tokenizer = transformers.T5TokenizerFast(vocab_file=str(spiece), add_prefix_space=True)
        compare_models(root, tokenizer)
        compare_files(root, tokenizer)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
