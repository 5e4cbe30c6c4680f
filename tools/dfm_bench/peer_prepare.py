#!/usr/bin/env python3
"""What DFM's prepare script does for each picture, one at a time, to compare `dfm prepare` with; and what both need.

    peer_prepare.py --make-weights W --spiece spiece.model     # random weights in the published shapes (10 GB of disk)
    peer_prepare.py --make-pictures P --count 1000             # JPEGs of about 512 pixels with captions
    peer_prepare.py --weights W --input P --count 64           # prints samples/s; loading is not counted
    dfm prepare --input P --tokenizer W/Cosmos-0.1-Tokenizer-CV4x8x8 --text-encoder W/t5-11b --output-dir out

A picture, as the script treats it: decode; the short side to 512, then both sides down to multiples of 16, a resize each;
one bfloat16 pass of the Cosmos encoder; T5 in float32 over the caption padded to 512 tokens, rows after it set to zero,
through float16 to bfloat16; torch.save, pickle and json into a tar. Needs torch, transformers, diffusers, pillow, numpy;
webdataset is used where it is there. --scale shrinks the networks for a trial on a CPU.
"""
import argparse
import io
import json
import pathlib
import pickle
import random
import shutil
import tarfile
import time

import numpy as np
import torch
from PIL import Image

SIDE, MULTIPLE, TEXT_ROWS = 512, 16, 512
TOKENIZER, TEXT_ENCODER = "Cosmos-0.1-Tokenizer-CV4x8x8", "t5-11b"
WORDS = ("a the small large blue red yellow brown pale dark butterfly moth wings open closed resting flying on over "
         "flower leaf grass stone forest meadow river sky morning evening with spots stripes edges photograph of").split()


def cosmos_config(scale):
    # 0.1-CV4x8x8: base 128, multipliers 2 and 4 in both halves, no learned step in time.
    widths = [max(8, w // scale) for w in (128, 256, 512)]
    return dict(encoder_block_out_channels=tuple(widths), decode_block_out_channels=(widths[1], widths[2], widths[2]),
                latent_channels=16, patch_size=4, num_layers=2, spatial_compression_ratio=8,
                temporal_compression_ratio=4, latents_mean=None, latents_std=None)


def t5_config(scale):
    return dict(vocab_size=32128, d_model=1024 // scale, d_ff=65536 // scale, d_kv=128, num_heads=max(1, 128 // scale),
                num_layers=24 if scale == 1 else 2, feed_forward_proj="relu", dropout_rate=0.0, is_encoder_decoder=False,
                use_cache=False)


def make_cosmos(scale):
    from diffusers import AutoencoderKLCosmos
    return AutoencoderKLCosmos(**cosmos_config(scale))


def make_t5(scale):
    from transformers import T5Config, T5EncoderModel
    return T5EncoderModel(T5Config(**t5_config(scale)))


def make_weights(folder, spiece, scale, device):
    folder = pathlib.Path(folder)
    torch.manual_seed(0)
    with torch.device(device):
        cosmos = make_cosmos(scale).to(torch.bfloat16)
    cosmos.save_pretrained(folder / TOKENIZER)
    del cosmos
    with torch.device(device):
        t5 = make_t5(scale).to(torch.bfloat16)
    t5.save_pretrained(folder / TEXT_ENCODER, max_shard_size="4GB")
    shutil.copy(spiece, folder / TEXT_ENCODER / "spiece.model")
    print(f"{folder}: {sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) / 1e9:.2f} GB")


def make_pictures(folder, count, seed=0):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng, words = np.random.default_rng(seed), random.Random(seed)
    for i in range(count):
        short = int(rng.integers(512, 641))
        long = int(short * rng.uniform(1.0, 1.6))
        size = (long, short) if rng.random() < 0.7 else (short, long)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize(size, Image.BICUBIC).save(folder / f"{i:06}.jpg", quality=92)
        (folder / f"{i:06}.txt").write_text(" ".join(words.choice(WORDS) for _ in range(words.randint(6, 20))))


class Script:
    def __init__(self, weights, device):
        from diffusers import AutoencoderKLCosmos
        from transformers import T5EncoderModel, T5Tokenizer
        weights = pathlib.Path(weights)
        self.device = device
        self.dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32  # a CPU has no bf16 average pooling
        self.cosmos = AutoencoderKLCosmos.from_pretrained(weights / TOKENIZER, torch_dtype=self.dtype).to(device).eval()
        self.t5 = T5EncoderModel.from_pretrained(weights / TEXT_ENCODER, torch_dtype=torch.float32).to(device).eval()
        self.tokenizer = T5Tokenizer(str(weights / TEXT_ENCODER / "spiece.model"), legacy=True)

    def pixels(self, path):
        image = Image.open(path).convert("RGB")
        scale = SIDE / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
        width, height = (x // MULTIPLE * MULTIPLE for x in image.size)
        image = image.resize((width, height), Image.BICUBIC)
        rgb = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None, :, None]
        return (rgb.to(self.device).to(self.dtype) / 255) * 2 - 1

    @torch.no_grad()
    def text(self, caption):
        batch = self.tokenizer([caption], max_length=TEXT_ROWS, padding="max_length", truncation=True, return_tensors="pt")
        ids, mask = batch.input_ids.to(self.device), batch.attention_mask.to(self.device)
        rows = self.t5(input_ids=ids, attention_mask=mask).last_hidden_state
        for row, length in zip(rows, mask.sum(1).tolist()):
            row[length:] = 0
        return torch.from_numpy(rows.cpu().numpy().astype(np.float16)).to(torch.bfloat16)

    @torch.no_grad()
    def sample(self, path):
        pixels = self.pixels(path)
        latent = self.cosmos.encode(pixels).latent_dist.mode().to(torch.bfloat16).cpu()
        text = self.text(path.with_suffix(".txt").read_text())
        saved = io.BytesIO()
        torch.save(latent, saved)
        sizes = {"image_height": pixels.shape[2], "image_width": pixels.shape[3]}
        return {"json": json.dumps(sizes).encode(), "pickle": pickle.dumps(text), "pth": saved.getvalue()}


def open_writer(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import webdataset
        writer = webdataset.ShardWriter(str(folder / "rank0-%06d.tar"), maxcount=10000, verbose=0)
        return lambda key, parts: writer.write({"__key__": key, **parts}), writer.close
    except ImportError:
        tar = tarfile.open(folder / "rank0-000000.tar", "w")

        def write(key, parts):
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return write, tar.close


def measure(options):
    start = time.perf_counter()
    script = Script(options.weights, options.device)
    loading = time.perf_counter() - start
    pictures = sorted(pathlib.Path(options.input).glob("*.jpg"))
    script.sample(pictures[0])  # kernels are chosen and loaded
    write, close = open_writer(options.output)
    start = time.perf_counter()
    count = min(options.count, len(pictures))
    for i, path in enumerate(pictures[:count]):
        write(f"{i:06}", script.sample(path))
    close()
    seconds = time.perf_counter() - start
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(json.dumps({"name": "transcription of DFM's script", "device": name, "samples": count,
                      "seconds": round(seconds, 3), "samples_per_second": round(count / seconds, 3),
                      "loading_seconds": round(loading, 1)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make-weights", metavar="DIR")
    parser.add_argument("--make-pictures", metavar="DIR")
    parser.add_argument("--weights", metavar="DIR")
    parser.add_argument("--input", metavar="DIR", help="folder of .jpg with .txt beside them")
    parser.add_argument("--output", metavar="DIR", default="peer_prepare_out")
    parser.add_argument("--spiece", metavar="FILE", help="T5's spiece.model, copied into the text encoder's folder")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--scale", type=int, default=1, help="divides the networks' widths")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.make_weights:
        if not options.spiece:
            parser.error("--make-weights needs --spiece")
        make_weights(options.make_weights, options.spiece, options.scale, options.device)
    if options.make_pictures:
        make_pictures(options.make_pictures, options.count)
    if options.weights:
        measure(options)


if __name__ == "__main__":
    main()
