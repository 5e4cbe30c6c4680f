"""webdataset 1.0.2 and tarfile read the shards that dfm writes."""
import glob
import os
import pickle
import struct
import sys
import tarfile

from peers import SAMPLES_PER_SHARD, SHARDS, check_sample, need, written_folder

torch, webdataset = need("torch", "webdataset")
folder = written_folder(sys.argv[1])
shards = sorted(glob.glob(f"{folder.name}/dataset/*.tar"))
assert len(shards) == SHARDS

dataset = webdataset.WebDataset(shards, shardshuffle=False).decode()
seen = []
for item in dataset:
    number = int(item["__key__"])
    assert set(item) >= {"json", "pickle", "pth"}
    check_sample(number, item["pth"], item["pickle"], item["json"])
    seen.append(number)
assert seen == list(range(SHARDS * SAMPLES_PER_SHARD)), seen

for shard in shards:
    assert os.path.getsize(shard) % 10240 == 0
    with tarfile.open(shard) as archive:
        members = archive.getmembers()
        assert len(members) == 3 * SAMPLES_PER_SHARD
        assert all(m.isreg() and m.mode == 0o444 and m.mtime == 0 and m.uname == "bigdata" for m in members)
        first = archive.extractfile(members[1])
        assert pickle.loads(first.read()).dtype == torch.bfloat16
        with open(shard + ".idx", "rb") as file:
            offsets = struct.unpack(f"<{SAMPLES_PER_SHARD + 1}Q", file.read())
        assert list(offsets[:-1]) == [m.offset for m in members[::3]]
        assert offsets[-1] == members[-1].offset_data + (members[-1].size + 511) // 512 * 512
print("read", len(seen), "samples")
