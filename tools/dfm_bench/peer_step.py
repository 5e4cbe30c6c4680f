#!/usr/bin/env python3
"""The same training step as `dfm_bench step` in PyTorch eager: DFM's DiT in batches, SDPA, fused AdamW.

Clips and pictures differ in length: two batches a step, gradients added (on a CPU faster than padding pictures to clips
with a mask). --text full: 512 text rows, as DFM attends to them; --text sink: the rows that are there and one key for
all the zero rows, the same shortcut that dfm takes.
"""
import argparse
import json
import math
import time

import torch
import torch.nn.functional as F
from torch import nn

TEXT_LENGTHS = [12, 9, 14, 0, 11, 8, 13, 10]
TEXT_ROWS = 512


def sinusoid(value, width, shift):
    half = width // 2
    angle = value[:, None] * torch.exp(-math.log(10000.0) * torch.arange(half, device=value.device) / (half - shift))
    return torch.cat([angle.sin(), angle.cos()], 1)


def axis_code(position, width):
    i = torch.arange(width // 2, dtype=torch.float64)
    angle = position[:, None].double() * 10000.0 ** (-i / (width / 2))
    return torch.cat([angle.sin(), angle.cos()], 1)


def position_codes(frames, side, width):
    t, h, w = torch.meshgrid(*[torch.arange(n) for n in (frames, side, side)], indexing="ij")
    codes = [axis_code(t.flatten(), width // 4), axis_code(w.flatten(), width * 3 // 8), axis_code(h.flatten(), width * 3 // 8)]
    return torch.cat(codes, 1)


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-5)


class Layer(nn.Module):
    def __init__(self, width, heads, text_width):
        super().__init__()
        self.heads, head = heads, width // heads
        self.ada_down = nn.Linear(width, 256, bias=False)
        self.ada_up = nn.Linear(256, 9 * width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.self_q_norm, self.self_k_norm = RmsNorm(head), RmsNorm(head)
        self.self_proj = nn.Linear(width, width, bias=False)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(text_width, 2 * width, bias=False)
        self.cross_q_norm, self.cross_k_norm = RmsNorm(head), RmsNorm(head)
        self.cross_proj = nn.Linear(width, width, bias=False)
        self.fc1 = nn.Linear(width, 4 * width, bias=False)
        self.fc2 = nn.Linear(4 * width, width, bias=False)

    def heads_of(self, x, parts):
        return x.unflatten(-1, (self.heads, parts, -1)).transpose(1, 2).unbind(3)

    def forward(self, x, condition, text, mask):
        mod = self.ada_up(self.ada_down(condition)).unsqueeze(1).chunk(9, -1)
        norm = lambda y: F.layer_norm(y, y.shape[-1:], eps=1e-5)
        q, k, v = self.heads_of(self.qkv(norm(x) * (1 + mod[1]) + mod[0]), 3)
        out = F.scaled_dot_product_attention(self.self_q_norm(q), self.self_k_norm(k), v)
        x = x + mod[2] * self.self_proj(out.transpose(1, 2).flatten(2))
        (q,) = self.heads_of(self.q(norm(x) * (1 + mod[4]) + mod[3]), 1)
        k, v = self.heads_of(self.kv(text), 2)
        out = F.scaled_dot_product_attention(self.cross_q_norm(q), self.cross_k_norm(k), v, attn_mask=mask)
        x = x + mod[5] * self.cross_proj(out.transpose(1, 2).flatten(2))
        return x + mod[8] * self.fc2(F.gelu(self.fc1(norm(x) * (1 + mod[7]) + mod[6])))


class Dit(nn.Module):
    def __init__(self, layers, width, heads, text_width):
        super().__init__()
        self.width = width
        mlp = lambda n: nn.Sequential(nn.Linear(n, n), nn.SiLU(), nn.Linear(n, n))
        self.time, self.fps = mlp(width), mlp(256)
        self.x_embedder = nn.Linear(64, width)
        self.layers = nn.ModuleList(Layer(width, heads, text_width) for _ in range(layers))
        self.final = nn.Linear(width, 64)

    def forward(self, x, positions, c_noise, fps, text, mask):
        dtype = x.dtype
        fps_code = self.fps(sinusoid(fps, 256, 1).to(dtype))
        fps_code = fps_code[:, : self.width] if self.width < 256 else F.pad(fps_code, (0, self.width - 256))
        condition = F.silu(self.time(sinusoid(c_noise, self.width, 0).to(dtype)) + fps_code)
        x = self.x_embedder(x) + positions
        for layer in self.layers:
            x = layer(x, condition, text, mask)
        return self.final(x)


def make_text(lengths, variant, width, device, dtype):
    """Rows [B, L, width] and an additive mask, or None."""
    longest = TEXT_ROWS if variant == "full" else max(lengths) + 1
    rows = torch.zeros(len(lengths), longest, width)
    for i, length in enumerate(lengths):
        rows[i, :length] = torch.randn(length, width)
    mask = None
    if variant == "sink":  # the last row is the key of weight 512 - length
        mask = torch.zeros(len(lengths), 1, 1, longest)
        for i, length in enumerate(lengths):
            mask[i, ..., length:-1] = -math.inf
            mask[i, ..., -1] = math.log(TEXT_ROWS - length)
        mask = mask.to(device, dtype)
    return rows.to(device, dtype), mask


def loss_sum(model, batch, device, dtype):
    latent, positions, text, mask = batch
    n, c, t, h, w = latent.shape
    x0 = latent.view(n, c, t, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 4, 6, 1).reshape(n, -1, 64).to(device) * 0.5
    sigma = torch.randn(n, device=device).exp()
    s = sigma.view(-1, 1, 1)
    root = (s * s + 0.25).sqrt()
    noise = torch.randn(x0.shape, device=device)
    xt = x0 + s * noise
    f = model((xt / root).to(dtype), positions, sigma.log() / 4, torch.full((n,), 30.0, device=device), text, mask).float()
    denoised = 0.25 / (root * root) * xt + s * 0.5 / root * f
    return (((s * s + 0.25) / (s * 0.5) ** 2) * (x0 - denoised) ** 2).mean(-1).sum()


def main():
    parser = argparse.ArgumentParser()
    for name, default in dict(layers=4, hidden=192, heads=6, text_width=1024, samples=8, side=12, frames=3, warmup=3, steps=20, threads=0).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--text", default="sink", choices=["full", "sink"])
    o = parser.parse_args()
    if o.threads:
        torch.set_num_threads(o.threads)
    device, dtype = torch.device(o.device), torch.float32 if o.precision == "fp32" else torch.bfloat16
    torch.manual_seed(0)
    model = Dit(o.layers, o.hidden, o.heads, o.text_width).to(device)
    masters = list(model.parameters())
    if dtype != torch.float32:  # fp32 masters, bf16 model: the gradients are copied over
        masters = [p.detach().clone().requires_grad_() for p in model.parameters()]
        model = model.to(dtype)
    groups = [{"params": [p for p in masters if p.dim() > 1], "weight_decay": 0.033},
              {"params": [p for p in masters if p.dim() <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-5, fused=True)
    half = o.samples // 2
    lengths = [TEXT_LENGTHS[i % 8] for i in range(o.samples)]
    positions = [position_codes(t, o.side // 2, o.hidden).to(device, dtype) for t in (o.frames, 1)]
    times, loss = [], 0.0
    for i in range(o.warmup + o.steps):
        batches = []
        for j, (frames, part) in enumerate([(o.frames, lengths[:half]), (1, lengths[half:])]):
            if part:
                latent = torch.randn(len(part), 16, frames, o.side, o.side)
                batches.append((latent, positions[j], *make_text(part, o.text, o.text_width, device, dtype)))
        tokens = sum(b[0].shape[0] * b[1].shape[0] for b in batches)
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            part = loss_sum(model, batch, device, dtype) / tokens
            part.backward()
            total = total + part.detach()
        if dtype != torch.float32:
            for master, p in zip(masters, model.parameters()):
                master.grad, p.grad = p.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        if dtype != torch.float32:
            torch._foreach_copy_(list(model.parameters()), masters)
        loss = float(total)
        if i >= o.warmup:
            times.append(time.perf_counter() - start)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(json.dumps({"name": "pytorch " + o.text, "device": name, "precision": o.precision,
                      "step_ms": round(sorted(times)[len(times) // 2] * 1e3, 3), "fastest_ms": round(min(times) * 1e3, 3),
                      "loss": loss}))


if __name__ == "__main__":
    main()
