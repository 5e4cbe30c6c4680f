"""`energon prepare` (6.0.1 or 7.4.1) makes folders that dfm opens; both open the same Metadataset YAML with the same
samples and weights; DFM's task encoder would take every sample that dfm writes."""
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys

tool, dataset_tool, packages = sys.argv[1:]
sys.path.insert(0, packages)

from peers import SAMPLES_PER_SHARD, SHARDS, need, sample, written_folder

torch, energon = need("torch", "megatron.energon")
folder = written_folder(tool)
is_6 = not hasattr(energon, "edataclass")


def dfm_open(path, split="train"):
    done = subprocess.run([dataset_tool, "open", path, split], check=True, capture_output=True, text=True,
                          env={**os.environ, "XDG_CACHE_HOME": f"{folder.name}/cache"})
    return json.loads(done.stdout)


def sha256(tensor):
    return hashlib.sha256(tensor.contiguous().view(torch.int16).numpy().tobytes()).hexdigest()


def check_samples(opened, numbers):
    assert sorted(opened["samples"]) == sorted(f"{n:06d}" for n in numbers), sorted(opened["samples"])
    for number in numbers:
        got = opened["samples"][f"{number:06d}"]
        pth, text, facts = sample(number)
        assert got["shape"] == list(pth.shape[1:])
        assert got["latent"] == sha256(pth)
        assert got["text_length"] == facts["text_length"]
        assert got["text"] == sha256(text[0, : facts["text_length"]])


# 1. `energon prepare` over tars as DFM's script leaves them; then an exclude of a shard and of a sample.
plain = f"{folder.name}/plain"
os.makedirs(plain)
for name in sorted(os.listdir(f"{folder.name}/dataset")):
    if name.endswith(".tar"):
        shutil.copy(f"{folder.name}/dataset/{name}", plain)
command = [sys.executable, "-c", "from megatron.energon.cli.main import main; main()", "prepare", plain]
environment = {**os.environ, "PYTHONPATH": packages}
if is_6:  # asks: split, whether to write dataset.yaml, and which class: 11 is the crude one
    subprocess.run(command + ["--num-workers", "1"], check=True, env=environment, input="2,1,0\ny\n11\n", text=True,
                   stdout=subprocess.DEVNULL)
else:
    subprocess.run(command + ["--num-workers", "1", "--non-interactive", "--split-ratio", "2,1,0", "--sample-type",
                              "CrudeWebdataset"], check=True, env=environment, stdout=subprocess.DEVNULL)
meta = f"{plain}/.nv-meta"
assert os.path.exists(f"{meta}/.info.yaml" if is_6 else f"{meta}/.info.json"), os.listdir(meta)
first_val = (SHARDS - 1) * SAMPLES_PER_SHARD
check_samples(dfm_open(plain), range(first_val))
check_samples(dfm_open(plain, "val"), range(first_val, SHARDS * SAMPLES_PER_SHARD))
split = open(f"{meta}/split.yaml").read()
with open(f"{meta}/split.yaml", "w") as file:
    file.write(split.replace("exclude: []", "exclude: [rank1-000000.tar, rank0-000000.tar/000002]"))
check_samples(dfm_open(plain), [0, 1, 3])
with open(f"{meta}/split.yaml", "w") as file:
    file.write(split)

# 2. One YAML for both: nested, with weights.
shutil.copytree(f"{folder.name}/dataset", f"{folder.name}/other")
with open(f"{folder.name}/inner.yaml", "w") as file:
    file.write("__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n  train:\n    blend:\n"
               "      - {weight: 3, path: plain}\n      - {weight: 1, path: other, split_part: val}\n")
with open(f"{folder.name}/blend.yaml", "w") as file:
    file.write("__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n  train:\n    blend:\n"
               "      - {weight: 1, path: inner.yaml}\n      - {weight: 1, path: ./dataset, split_part: train}\n"
               "  val: {path: dataset}\n")
ours = dfm_open(f"{folder.name}/blend.yaml")
worker = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
loaded = energon.load_dataset(f"{folder.name}/blend.yaml").get_datasets(
    training=True, split_part="train", worker_config=worker)
loaded = loaded.datasets if hasattr(loaded, "datasets") else loaded[1]
theirs = {}
for item in loaded:
    dataset, weight = (item.dataset, item.weight) if hasattr(item, "dataset") else item[:2]
    theirs[os.path.basename(str(dataset.path))] = weight
draws = {name.split(":")[0]: count / 4096 for name, count in ours["draws"].items()}
assert theirs.keys() == draws.keys() == {"plain", "other", "dataset"}, (theirs, draws)
for name, weight in theirs.items():
    assert abs(draws[name] - weight) < 0.5 / 4096 + 1e-9, (name, weight, draws[name])


# What energon draws is what dfm's entries are, by set.
want = {"plain": range(first_val), "dataset": range(first_val),
        "other:val": range(first_val, SHARDS * SAMPLES_PER_SHARD)}
assert sorted(ours["samples"]) == sorted(f"{name}/{n:06d}" for name, numbers in want.items() for n in numbers)


@getattr(energon, "edataclass", dataclasses.dataclass)
class Cooked(energon.Sample):
    pth: torch.Tensor
    pickle: torch.Tensor
    json: dict


@energon.stateless
def cook(item):
    assert {"json", "pth", "pickle"} <= set(item)
    return Cooked(**energon.basic_sample_keys(item), pth=item["pth"], pickle=item["pickle"], json=item["json"])


class DfmEncoder(energon.TaskEncoder):
    """The rules of DFM's task encoder: what it refuses or needs of a sample."""

    cookers = [energon.Cooker(cook)]

    def encode_sample(self, item):
        video = item.pth
        assert isinstance(video, torch.Tensor) and isinstance(item.pickle, torch.Tensor)
        assert torch.isfinite(video).all() and video.abs().max() <= 1e3
        video = video.squeeze(0)
        channels, frames, height, width = video.shape
        assert channels == 16 and height % 2 == 0 and width % 2 == 0
        text = item.pickle.cpu().float().numpy()
        text = text[0] if text.ndim == 3 and text.shape[0] == 1 else text
        assert text.ndim == 2 and text.shape[0] <= 512
        assert item.json["image_height"] == 8 * height and item.json["image_width"] == 8 * width
        return item


seen = set()
dataset = energon.get_train_dataset(f"{folder.name}/blend.yaml", worker_config=worker, batch_size=None,
                                    shuffle_buffer_size=None, max_samples_per_sequence=None, virtual_epoch_length=600,
                                    task_encoder=DfmEncoder())
for item in energon.get_loader(dataset):
    seen.add((tuple(item.pth.shape), sha256(item.pth)))
assert seen == {((1, *s["shape"]), s["latent"]) for s in ours["samples"].values()}
val = energon.get_val_dataset(f"{folder.name}/blend.yaml", split_part="val", worker_config=worker, batch_size=None,
                              task_encoder=DfmEncoder())
latents = sorted(sha256(item.pth) for item in energon.get_loader(val))
assert latents == sorted(s["latent"] for s in dfm_open(f"{folder.name}/blend.yaml", "val")["samples"].values())
print("read", len(ours["samples"]), "samples of a blend with", energon.__file__)
