#!/usr/bin/env python3
"""diffusers' AutoencoderKLCosmos, timed as `dfm_bench cosmos` times dfm's: random weights of the published shapes.

    peer_cosmos.py --device cuda --precision bf16 [--compile] [--height 704 --width 1280 --frames 121]
"""
import argparse
import json
import time

import torch
from diffusers import AutoencoderKLCosmos

VARIANTS = {
    "CV8x8x8": {},
    "CV8x16x16": dict(spatial_compression_ratio=16),
    "CV4x8x8": dict(temporal_compression_ratio=4, encoder_block_out_channels=(128, 256, 512), decode_block_out_channels=(256, 512, 512)),
}


def main():
    parser = argparse.ArgumentParser()
    for name, default in dict(height=704, width=1280, frames=121, batch=1, warmup=1, steps=3).items():
        parser.add_argument("--" + name, type=int, default=default)
    parser.add_argument("--variant", default="CV8x8x8", choices=VARIANTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--what", default="both", choices=["encode", "decode", "both"])
    parser.add_argument("--compile", action="store_true")
    o = parser.parse_args()
    device, dtype = torch.device(o.device), torch.float32 if o.precision == "fp32" else torch.bfloat16
    vae = AutoencoderKLCosmos(**VARIANTS[o.variant]).to(device, dtype).eval()
    s, k = vae.config.spatial_compression_ratio, vae.config.temporal_compression_ratio
    encode, decode = vae._encode, lambda z: vae._decode(z, return_dict=False)[0]
    if o.compile:
        encode, decode = torch.compile(encode), torch.compile(decode)

    def report(what, body, x):
        times = []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for i in range(o.warmup + o.steps):
            start = time.perf_counter()
            body(x).flatten()[0].item()
            if i >= o.warmup:
                times.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        print(json.dumps({"name": f"diffusers {what}" + (" compiled" if o.compile else ""), "variant": o.variant, "device": name,
                          "size": f"{o.batch}x{o.frames}x{o.height}x{o.width}", "ms": round(min(times) * 1e3, 2),
                          "frames_per_s": round(o.batch * o.frames / min(times), 1), "peak_gb": round(peak, 2)}), flush=True)

    with torch.no_grad():
        if o.what != "decode":
            report("encode", encode, torch.rand(o.batch, 3, o.frames, o.height, o.width, device=device, dtype=dtype) * 2 - 1)
        if o.what != "encode":
            shape = (o.batch, 16, 1 + (o.frames - 1) // k, o.height // s, o.width // s)
            report("decode", decode, torch.randn(shape, device=device, dtype=dtype))


if __name__ == "__main__":
    main()
