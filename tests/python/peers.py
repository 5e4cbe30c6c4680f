"""What the scripts of this folder share: missing packages, the tool, the contents that it writes."""
import importlib
import os
import subprocess
import sys
import tempfile

SHARDS, SAMPLES_PER_SHARD = 3, 4


def need(*names):
    """Imports packages; a missing one skips the test on a developer's machine and fails it in CI."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        print(f"missing: {error}; hint: script/test installs what the tests compare with")
        sys.exit(1 if os.environ.get("CI") == "true" else 77)


def pattern(shape, dtype, salt):
    """The values that formats_tool writes."""
    import torch

    count = 1
    for size in shape:
        count *= size
    integers = (torch.arange(count) * 37 + salt).remainder(101)
    if dtype == torch.bool:
        return integers.remainder(2).to(dtype).reshape(shape)
    if dtype.is_floating_point:
        return ((integers - 50).double() / 2).to(dtype).reshape(shape)
    return integers.to(dtype).reshape(shape)


def sample(number):
    """Sample `number` of the data set: latent, text, json."""
    import torch

    width, text_length = 8 + 2 * (number % 3), 1 + 7 * number
    text = pattern([1, 512, 64], torch.bfloat16, number + 1)
    text[:, text_length:] = 0
    facts = {"image_height": 64, "image_width": 8 * width, "caption": f"sample {number:06d}", "text_length": text_length}
    return pattern([1, 16, 1 + number % 2, 8, width], torch.bfloat16, number), text, facts


def same(a, b):
    import torch

    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def check_sample(number, pth, text, facts):
    want_pth, want_text, want_facts = sample(number)
    assert same(pth, want_pth), f"sample {number}: pth"
    assert same(text, want_text), f"sample {number}: pickle"
    assert facts == want_facts, f"sample {number}: {facts}"


def written_folder(tool):
    folder = tempfile.TemporaryDirectory(prefix="dfm-interop-")
    subprocess.run([tool, "write", folder.name], check=True)
    return folder
