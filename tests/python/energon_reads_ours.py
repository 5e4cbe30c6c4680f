"""megatron-energon (6.0.1 or 7.4.1, in a folder of its own) reads a data set of dfm's without `energon prepare`."""
import dataclasses
import os
import sys

tool, packages = sys.argv[1:]
sys.path.insert(0, packages)
os.environ["WDS_PYTORCH_WEIGHTS_ONLY"] = "1"

from peers import SAMPLES_PER_SHARD, SHARDS, check_sample, need, written_folder

torch, energon = need("torch", "megatron.energon")
folder = written_folder(tool)
assert os.path.realpath(energon.__file__).startswith(os.path.realpath(packages)), energon.__file__


@getattr(energon, "edataclass", dataclasses.dataclass)  # 7 has its own, 6 takes the plain one
class Cooked(energon.Sample):
    pth: torch.Tensor
    text: torch.Tensor
    facts: dict


@energon.stateless
def cook(sample):
    return Cooked(**energon.basic_sample_keys(sample), pth=sample["pth"], text=sample["pickle"], facts=sample["json"])


class Encoder(energon.TaskEncoder):
    cookers = [energon.Cooker(cook)]


worker = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
seen = []
for split in ("train", "val"):
    # One exact pass. get_train_dataset would repeat for ever.
    dataset = energon.get_val_dataset(f"{folder.name}/dataset", split_part=split, worker_config=worker, batch_size=None,
                                      task_encoder=Encoder())
    keys = []
    for item in energon.get_loader(dataset):
        number = int(item.__key__.split("/")[-1])
        check_sample(number, item.pth, item.text, item.facts)
        keys.append(number)
    assert len(set(keys)) == len(keys)
    seen.append(sorted(keys))
assert seen[0] == list(range((SHARDS - 1) * SAMPLES_PER_SHARD)), seen
assert seen[1] == list(range((SHARDS - 1) * SAMPLES_PER_SHARD, SHARDS * SAMPLES_PER_SHARD)), seen
print("read", sum(map(len, seen)), "samples with", energon.__file__)
