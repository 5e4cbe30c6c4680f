#!/usr/bin/env python3
"""transformers' T5 encoder, timed as `dfm_bench t5` times dfm's: random weights of the published shapes.

    peer_t5.py --device cuda --how compiled     bf16, sorted by length, padded to the batch's longest, torch.compile
    peer_t5.py --device cuda --how eager        the same without torch.compile
    peer_t5.py --device cuda --how script       as DFM's script does it: one caption at a time, padded to 512, fp32
"""
import argparse
import json
import time

import torch
from transformers import T5Config, T5EncoderModel

MODELS = {  # d_model, d_kv, d_ff, heads, layers
    "t5-small": (512, 64, 2048, 8, 6), "t5-base": (768, 64, 3072, 12, 12), "t5-large": (1024, 64, 4096, 16, 24),
    "t5-3b": (1024, 128, 16384, 32, 24), "t5-11b": (1024, 128, 65536, 128, 24), "t5-v1_1-xxl": (4096, 64, 10240, 64, 24),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(layers=0, captions=1024, warmup=1, steps=3, batch_tokens=8192, threads=0).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument("--model", default="t5-11b", choices=MODELS)
    parser.add_argument("--lengths", default="9,14,7,22,11,31,17,48")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="", choices=["", "fp32", "bf16"])
    parser.add_argument("--how", default="eager", choices=["eager", "compiled", "script"])
    o = parser.parse_args()
    if o.threads:
        torch.set_num_threads(o.threads)
    device = torch.device(o.device)
    precision = o.precision or ("fp32" if o.how == "script" or device.type == "cpu" else "bf16")
    d_model, d_kv, d_ff, heads, layers = MODELS[o.model]
    config = T5Config(d_model=d_model, d_kv=d_kv, d_ff=d_ff, num_heads=heads, num_layers=o.layers or layers, vocab_size=32128,
                      feed_forward_proj="gated-gelu" if "v1_1" in o.model else "relu")
    torch.set_default_dtype(torch.float32 if precision == "fp32" else torch.bfloat16)
    with device:
        model = T5EncoderModel(config).eval()
    torch.set_default_dtype(torch.float32)
    encode = torch.compile(model) if o.how == "compiled" else model

    cycle = [int(n) for n in o.lengths.split(",")]
    lengths = sorted(cycle[i % len(cycle)] for i in range(o.captions))
    if o.how == "script":
        batches, pad = [[n] for n in lengths], 512
    else:
        batches, pad = [], 0
        for n in lengths:  # sorted: the last is the longest
            if not batches or n * (len(batches[-1]) + 1) > o.batch_tokens:
                batches.append([])
            batches[-1].append(n)
    inputs = []
    for batch in batches:
        width = pad or batch[-1]
        ids = torch.randint(3, 32000, (len(batch), width), device=device)
        mask = (torch.arange(width)[None] < torch.tensor(batch)[:, None]).long().to(device)
        inputs.append((ids, mask))

    times = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        for i in range(o.warmup + o.steps):
            start = time.perf_counter()
            for ids, mask in inputs:
                rows = encode(input_ids=ids, attention_mask=mask).last_hidden_state
            rows.float().sum().item()
            if i >= o.warmup:
                times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(json.dumps({"name": f"transformers {o.how}", "model": o.model, "layers": config.num_layers, "device": name,
                      "precision": precision, "captions": o.captions, "tokens": sum(lengths), "ms": round(min(times) * 1e3, 2),
                      "tokens_per_s": round(sum(lengths) / min(times)), "captions_per_s": round(o.captions / min(times), 1),
                      "peak_gb": round(peak, 2)}), flush=True)


if __name__ == "__main__":
    main()
