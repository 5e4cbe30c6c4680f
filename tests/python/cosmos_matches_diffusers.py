"""dfm's Cosmos tokenizer against diffusers' AutoencoderKLCosmos with random weights: diffusers' own folders, the same
weights under Cosmos' names, and TorchScript archives traced from a module with those names.

    cosmos_matches_diffusers.py COSMOS_TOOL
"""
import os
import re
import subprocess
import sys
import tempfile

from peers import need

TOLERANCE = 1e-4  # of the largest value


def native_name(name, levels):
    """Cosmos' own name of a tensor that diffusers calls `name`."""
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
    if "samplers.0." in name or "quant_conv." in name:
        stem, tail = name.rsplit(".", 1)
        name = f"{stem}.conv3d.{tail}"
    for old, new in [("down_blocks.", "down."), ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
                     ("mid_block.attentions.0", "mid.attn_1.0"), ("mid_block.temp_attentions.0", "mid.attn_1.1"),
                     (".resnets.", ".block."), ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"),
                     (".conv_shortcut.", ".nin_shortcut.conv3d."), (".conv_s.", ".0.conv3d."), (".conv_t.", ".1.conv3d."),
                     (".to_q.", ".q.conv3d."), (".to_k.", ".k.conv3d."), (".to_v.", ".v.conv3d."), (".to_out.0.", ".proj_out.conv3d.")]:
        name = name.replace(old, new)
    return name


def module_tree(torch, tensors):
    """A module whose parameters have these dotted names; forward touches all of them, so that a trace keeps them."""

    class Node(torch.nn.Module):
        def forward(self, x):
            for parameter in self.parameters(recurse=False):
                x = x + 0 * parameter.sum()
            for child in self.children():
                x = child(x)
            return x

    root = Node()
    for name, value in tensors.items():
        *path, leaf = name.split(".")
        node = root
        for part in path:
            if not hasattr(node, part):
                node.add_module(part, Node())
            node = getattr(node, part)
        node.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))
    return root


def main():
    torch, diffusers, safetensors = need("torch", "diffusers", "safetensors.torch")
    tool = sys.argv[1]
    torch.set_num_threads(2)
    torch.manual_seed(0)
    save_file, load_file = safetensors.save_file, safetensors.load_file

    def run(folder, inputs):
        source, target = os.path.join(folder, "inputs.st"), os.path.join(folder, "outputs.st")
        save_file(inputs, source)
        subprocess.run([tool, folder, source, target], check=True)
        return load_file(target)

    def compare(label, got, want):
        for name, value in want.items():
            for way in ("whole.", "pieces."):
                error = float((got[way + name] - value).abs().max() / value.abs().max())
                print(f"{label} {way}{name}: {error:.2e}")
                assert got[way + name].shape == value.shape and error < TOLERANCE, (label, name, error)

    tiny = dict(encoder_block_out_channels=(16, 32, 48, 48), decode_block_out_channels=(32, 48, 48, 40))
    four = dict(encoder_block_out_channels=(16, 32, 48), decode_block_out_channels=(32, 48, 40), temporal_compression_ratio=4)
    cases = {  # name: config, shapes of clips
        "CV8x8x8": (tiny, [(1, 40, 24), (9, 24, 40), (17, 32, 16)]),
        "CV4x8x8": (four, [(1, 24, 24), (9, 24, 40)]),
        "CV8x16x16": (dict(tiny, spatial_compression_ratio=16), [(1, 48, 16), (9, 32, 48)]),
        "CV4x8x8-360p": (dict(tiny, patch_size=2, temporal_compression_ratio=4), [(1, 24, 16), (9, 16, 24)]),
        "attention": (dict(tiny, resolution=256, latent_channels=8, num_layers=1, latents_mean=None, latents_std=None), [(9, 24, 16)]),
        "rearranged": (dict(tiny, patch_type="rearrange"), [(9, 16, 24)]),
        "published": (dict(), [(9, 16, 24)]),
    }
    for label, (config, clips) in cases.items():
        vae = diffusers.AutoencoderKLCosmos(**config).eval()
        with torch.no_grad():
            for name, parameter in vae.named_parameters():
                if "norm" in name:  # not what all norms start with
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            inputs, want = {}, {}
            for frames, height, width in clips:
                pixels = torch.rand(3, frames, height, width) * 2 - 1
                latent = vae.encode(pixels[None]).latent_dist.mode()[0]
                inputs[f"pixels.{frames}"], want[f"pixels.{frames}"] = pixels, latent
                code = torch.randn_like(latent)
                inputs[f"latent.{frames}"], want[f"latent.{frames}"] = code, vae.decode(code[None]).sample[0]
        inputs, want = [{k: v.contiguous() for k, v in d.items()} for d in (inputs, want)]
        with tempfile.TemporaryDirectory(prefix="dfm-cosmos-") as folder:
            vae.save_pretrained(folder)
            got = run(folder, inputs)
            compare(label, got, want)
            if vae.config.latents_mean is None:
                assert "mean" not in got
            else:
                assert torch.allclose(got["mean"].float(), torch.tensor(vae.config.latents_mean))
                assert torch.allclose(got["std"].float(), torch.tensor(vae.config.latents_std))
        if label in ("attention", "rearranged", "published"):
            continue
        levels = len(vae.config.encoder_block_out_channels) - 1
        native = {native_name(k, levels): v.detach().clone().contiguous() for k, v in vae.state_dict().items()}
        with tempfile.TemporaryDirectory(prefix="dfm-cosmos-") as folder:
            save_file(native, os.path.join(folder, "model.safetensors"))
            compare(label + " native", run(folder, inputs), want)
        with tempfile.TemporaryDirectory(prefix="dfm-cosmos-") as folder:
            for half in ("encoder", "decoder"):
                own = {k: v for k, v in native.items() if k.startswith((half + ".", "quant" if half == "encoder" else "post_quant"))}
                torch.jit.trace(module_tree(torch, own), torch.zeros(1), check_trace=False).save(os.path.join(folder, half + ".jit"))
            mean, std = torch.randn(256), torch.rand(256)
            torch.save((mean, std), os.path.join(folder, "mean_std.pt"))
            got = run(folder, inputs)
            compare(label + " jit", got, want)
            assert torch.equal(got["mean"].float(), mean) and torch.equal(got["std"].float(), std)


if __name__ == "__main__":
    main()
