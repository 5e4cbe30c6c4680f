"""dfm reads data sets as pyarrow, `datasets` and webdataset write them: encodings, column types, nulls and damage."""
import hashlib
import http.server
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
import zlib

from peers import need

numpy, pa, pq, webdataset = need("numpy", "pyarrow", "pyarrow.parquet", "webdataset")
root = tempfile.TemporaryDirectory(prefix="dfm-parquet-")
os.environ["HF_HUB_OFFLINE"] = "1"


def start():
    return subprocess.Popen([sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


tool = start()


def ask(input_, **options):
    tool.stdin.write(json.dumps({"input": input_, **options}) + "\n")
    tool.stdin.flush()
    line = tool.stdout.readline()
    assert line, "the tool ended"
    return json.loads(line)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture(number):
    """A picture of its own for each number, and its PNG."""
    rgb = numpy.random.default_rng(number).integers(0, 256, (32, 32 + 16 * (number % 3), 3), dtype=numpy.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)
    header = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return rgb, png


def path(name):
    full = os.path.join(root.name, name)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    return full


def check(item, name, number, caption):
    rgb, _ = picture(number)
    want = {"name": name, "num_pixels": rgb.size // 3, "is_clip": False, "caption": caption, "shape": [1, *rgb.shape],
            "sha256": hashlib.sha256(rgb.tobytes()).hexdigest()}
    assert item == want, f"\n got {item}\nwant {want}"


def error_of(answer, *parts):
    assert answer.get("code") == 3, answer
    assert "\n" not in answer["error"] and all(part in answer["error"] for part in parts), (answer["error"], parts)


count = 40
captions = [f"picture {i} \u00e9\u4e2d" for i in range(count)]
pngs = [picture(i)[1] for i in range(count)]
image_struct = pa.array([{"bytes": png, "path": f"{i}.png"} for i, png in enumerate(pngs)],
                        pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
features = {"info": {"features": {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}}}


def table(image=image_struct, text=captions, **more):
    columns = {"image": image, "text": text if isinstance(text, pa.Array) else pa.array(text, pa.string())}
    return pa.table({**columns, "number": pa.array(range(len(text)), pa.int64()),
                     **{name: pa.array(values) for name, values in more.items()}}
                    ).replace_schema_metadata({"huggingface": json.dumps(features)})


def check_all(answer, file, note=""):
    assert "items" in answer, (note, answer)
    assert len(answer["items"]) == count
    for i, item in enumerate(answer["items"]):
        check(item, f"{file}:{i:08}", i, captions[i])


# Compression, encodings, page and row group sizes, versions.
num_files = 0
for options in (
        {"compression": "none"}, {"compression": "snappy"}, {"compression": "gzip"}, {"compression": "zstd"},
        {"compression": "brotli"}, {"compression": "lz4"}, {"use_dictionary": False}, {"row_group_size": 7},
        {"row_group_size": 1, "version": "1.0"}, {"data_page_version": "2.0", "compression": "zstd"},
        {"data_page_size": 1000, "write_page_index": True}, {"write_page_checksum": True, "store_schema": False},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY", "number": "DELTA_BINARY_PACKED"}},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}}):
    file = path(f"encodings/{num_files}.parquet")
    pq.write_table(table(), file, **options)
    check_all(ask(file), os.path.basename(file), options)
    check_all(ask(file, order="backwards"), os.path.basename(file), options)
    check_all(ask(file, threads=4), os.path.basename(file), options)
    num_files += 1

# Types of the columns.
for image in (image_struct, pa.array(pngs, pa.binary()), pa.array(pngs, pa.large_binary()),
              pa.array([{"path": None, "bytes": png} for png in pngs],
                       pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())]))):
    for text in (pa.array(captions, pa.string()), pa.array(captions, pa.large_string()),
                 pa.array(captions).dictionary_encode(), pa.array([[caption, "other"] for caption in captions])):
        file = path(f"types/{num_files}.parquet")
        pq.write_table(table(image, text), file, row_group_size=13)
        check_all(ask(file, threads=3), os.path.basename(file), (image.type, text.type))
        num_files += 1

# Several files in a folder, in order of their names; one of them without rows.
for part in range(3):
    name = f"shards/data/train-{part:05}-of-00003.parquet"
    pq.write_table(table().slice(part * 15, 15), path(name), row_group_size=4)
pq.write_table(table().slice(0, 0), path("shards/data/train-00000-of-00003-b.parquet"))
answer = ask(path("shards"), threads=2)
assert len(answer.get("items", [])) == count, answer
assert "(4 parquet files): 40 rows, pictures from column image, captions from column text" in answer["description"]
for i, item in enumerate(answer["items"]):
    check(item, f"data/train-{i // 15:05}-of-00003.parquet:{i % 15:08}", i, captions[i])

# The same as a data set of the hub, in a cache that another client filled.
commit = "0123456789abcdef0123456789abcdef01234567"
for part in range(3):
    name = f"data/train-{part:05}-of-00003.parquet"
    os.symlink(path(f"shards/{name}"), path(f"cache/datasets--org--shards/snapshots/{commit}/{name}"))
with open(path("cache/datasets--org--shards/refs/main"), "w") as file:
    file.write(commit)
answer = ask("org/shards", hub_cache=path("cache"))
assert len(answer.get("items", [])) == count, answer
check(answer["items"][39], "data/train-00002-of-00003.parquet:00000009", 39, captions[39])
os.remove(path(f"cache/datasets--org--shards/snapshots/{commit}/data/train-00001-of-00003.parquet"))
error_of(ask("org/shards", hub_cache=path("cache")), "got 2 of 3 files")

# The data set of DFM's tutorial has its own columns, and fetches what is null by URL.
butterflies = "datasets--huggan--smithsonian_butterflies_subset"
name = "data/train-00000-of-00001.parquet"
pq.write_table(table(text=captions[::-1], name=captions, image_url=["http://host.invalid/"] * count),
               path(f"cache/{butterflies}/snapshots/{commit}/{name}"))
with open(path(f"cache/{butterflies}/refs/main"), "w") as file:
    file.write(commit)
check_all(ask("huggan/smithsonian_butterflies_subset", hub_cache=path("cache")), name)
answer = ask("huggan/smithsonian_butterflies_subset", hub_cache=path("cache"), caption_column="text")
assert answer["items"][0]["caption"] == captions[-1], answer

# Bad cells: the row is an error, its neighbours are not.
with open(path("cells/beside.png"), "wb") as file:
    file.write(pngs[5])
cells = [{"bytes": pngs[0], "path": None}, None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""},
         {"bytes": b"no picture", "path": "x.png"}, {"bytes": None, "path": "beside.png"},
         {"bytes": None, "path": "http://host.invalid/x.png"}, {"bytes": pngs[7][:200], "path": None},
         {"bytes": pngs[8], "path": None}, {"bytes": pngs[9], "path": None}]
text = pa.array([b"zero", b"1", b"2", b"3", b"4", b" five ", b"6", b"7", None, b"\xff\xfe"], pa.binary())
text = pa.Array.from_buffers(pa.string(), len(text), text.buffers())
pq.write_table(table(pa.array(cells, image_struct.type), text), path("cells/bad.parquet"))
items = ask(path("cells/bad.parquet"))["items"]
check(items[0], "bad.parquet:00000000", 0, "zero")
check(items[5], "bad.parquet:00000005", 5, "five")
check(items[8], "bad.parquet:00000008", 8, None)
for i, part in {1: "nothing in column image", 2: "nothing in column image", 3: "nothing in column image", 4: "00000004",
                6: "00000006", 7: "00000007", 9: "UTF-8"}.items():
    assert part in items[i]["error"] and f"bad.parquet:{i:08}" in items[i]["error"], items[i]

# Pictures by place, and the fall-back of DFM's data set.
for i in (1, 2):
    with open(path(f"places/p{i}.png"), "wb") as file:
        file.write(pngs[i])
places = pa.array(["p1.png", "p2.png", "none.png", None])
pq.write_table(table(places, list("abcd")), path("places/t.parquet"))
items = ask(path("places/t.parquet"))["items"]
check(items[0], "t.parquet:00000000", 1, "a")
check(items[1], "t.parquet:00000001", 2, "b")
assert "none.png" in items[2]["error"] and "nothing in column image" in items[3]["error"], items
urls = [f"http://host.invalid/{i}.png" for i in range(4)]
pq.write_table(table(pa.array(urls), list("abcd")), path("urls.parquet"))
error_of(ask(path("urls.parquet")), "only URLs in column image", "HF_HUB_OFFLINE")
nulls = pa.array([None] * 4, image_struct.type)
pq.write_table(table(nulls, list("abcd"), image_url=urls), path("fallback.parquet"))
error_of(ask(path("fallback.parquet")), "only URLs in column image_url")
pq.write_table(table(image_struct.slice(0, 4), list("abcd"), image_url=urls), path("fallback.parquet"))
check(ask(path("fallback.parquet"))["items"][3], "fallback.parquet:00000003", 3, "d")

# Choice of columns.
columns = {"image": image_struct, "mask": image_struct, "name": pa.array(captions), "caption": pa.array(captions[::-1]),
           "prompt": pa.array(captions), "when": pa.array([0] * count, pa.timestamp("s")),
           "score": pa.array([i / 2 for i in range(count)])}
pq.write_table(pa.table(columns), path("columns.parquet"))
error_of(ask(path("columns.parquet")), "(caption, prompt)", "--caption-column")
error_of(ask(path("columns.parquet"), caption_column="words"), "image, mask, name, caption, prompt, when, score")
error_of(ask(path("columns.parquet"), caption_column="when"), "holds no text")
error_of(ask(path("columns.parquet"), caption_column="name", image_column="score"), "holds no picture")
check(ask(path("columns.parquet"), caption_column="caption")["items"][1], "columns.parquet:00000001", 1, captions[-2])
items = ask(path("columns.parquet"), caption_column="score", image_column="mask")["items"]
check(items[3], "columns.parquet:00000003", 3, "1.5")
pq.write_table(pa.table({"label": pa.array([1, 2]), "words": pa.array(["a", "b"])}), path("plain.parquet"))
error_of(ask(path("plain.parquet")), "columns: label, words", "--image-column")
pq.write_table(table().slice(0, 0), path("empty.parquet"))
error_of(ask(path("empty.parquet")), "empty.parquet", "no row")

# Class labels of `datasets`: their names are captions.
label = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
labelled = pa.table({"image": image_struct.slice(0, 4), "label": pa.array([1, 0, -1, None], pa.int64())})
pq.write_table(labelled.replace_schema_metadata({"huggingface": json.dumps(label)}), path("labels.parquet"))
assert [item["caption"] for item in ask(path("labels.parquet"))["items"]] == ["dog", "cat", None, None]
pq.write_table(labelled.replace_schema_metadata({"huggingface": "{\"info\": [3"}), path("labels.parquet"))
error_of(ask(path("labels.parquet")), "columns: image, label")
check(ask(path("labels.parquet"), caption_column="label")["items"][1], "labels.parquet:00000001", 1, "0")

# Damaged files: a line of error, or rows that are skipped; never a crash.
pq.write_table(table(), path("whole.parquet"), row_group_size=10, compression="snappy", write_page_checksum=True)
with open(path("whole.parquet"), "rb") as file:
    whole = file.read()


def damaged(data):
    with open(path("damaged.parquet"), "wb") as file:
        file.write(data)
    return ask(path("damaged.parquet"))


error_of(damaged(b""), "damaged.parquet")
error_of(damaged(whole[:-1]), "damaged.parquet", "footer")
error_of(damaged(whole[:len(whole) // 2]), "damaged.parquet")
error_of(damaged(whole[:-4] + b"PAR2"), "damaged.parquet")
error_of(damaged(whole[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1"), "damaged.parquet")
error_of(damaged(b"\x89PNG and so on" * 10), "damaged.parquet")
middle = whole.index(pngs[25]) + 50
answer = damaged(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1:])
bad = [i for i, item in enumerate(answer["items"]) if "error" in item]
assert bad == list(range(20, 30)), bad  # the page's checksum is wrong: its row group is lost, the others are not
assert "row 25 of column image" in answer["items"][25]["error"], answer["items"][25]
draw = random.Random(1)
for _ in range(150):
    data = bytearray(whole)
    for _ in range(draw.randint(1, 20)):
        data[draw.choice((draw.randrange(len(data)), len(data) - 1 - draw.randrange(3000)))] ^= 1 << draw.randrange(8)
    answer = damaged(bytes(data))
    assert "items" in answer or answer["code"] == 3, answer
    for item in answer.get("items", []):
        assert "error" in item or item["caption"] is None or len(item["caption"]) < 100

# Tars of raw media, as Python's webdataset writes them.
path("raw/x")
with webdataset.ShardWriter(path("raw/%06d.tar"), maxcount=15, verbose=0) as writer:
    for i in range(count):
        sample = {"__key__": f"{i:06}", "png": pngs[i]}
        writer.write({**sample, "txt": captions[i]} if i % 2 else {**sample, "json": {"caption": captions[i], "n": i}})
answer = ask(path("raw"), threads=3)
assert len(answer["items"]) == count, answer
for i, item in enumerate(answer["items"]):
    check(item, f"{i // 15:06}.tar:{i:06}", i, captions[i])


# Pictures by URL and a data set of the hub, from a server here.
shards = [f"data/train-{part:05}-of-00003.parquet" for part in range(3)]
shards = {name: path(f"shards/{name}") for name in shards}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        number = self.path.strip("/").removesuffix(".png")
        shard = shards.get(self.path.partition("/resolve/")[2].partition("/")[2])
        data = pngs[int(number)] if number.isdigit() else b""
        if self.path.startswith("/api/datasets/org/online/revision/"):
            names = ["README.md", "data/test-00000-of-00001.parquet", *shards]
            data = json.dumps({"sha": commit, "siblings": [{"rfilename": name} for name in names]}).encode()
        elif shard and self.path.startswith("/datasets/org/online/resolve/"):
            with open(shard, "rb") as file:
                data = file.read()
        self.send_response(200 if data else 404)
        self.send_header("Content-Length", str(len(data)))
        if shard:
            self.send_header("ETag", '"' + hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() + '"')
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
urls = [f"http://127.0.0.1:{server.server_port}/{name}.png" for name in ("3", "1", "none", "2")]
pq.write_table(table(pa.array(urls), list("abcd")), path("urls.parquet"))
pq.write_table(table(nulls, list("abcd"), image_url=urls), path("fallback.parquet"))
tool.stdin.close()
assert tool.wait() == 0
del os.environ["HF_HUB_OFFLINE"]
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
tool = start()
for attempt in ("downloaded", "found in the cache"):
    items = ask("org/online", hub_cache=path("downloads"))["items"]
    for i, item in enumerate(items):
        check(item, f"data/train-{i // 15:05}-of-00003.parquet:{i % 15:08}", i, captions[i])
    assert len(items) == count, attempt
error_of(ask("org/none", hub_cache=path("downloads")), "org/none", "404")
for name in ("urls.parquet", "fallback.parquet"):
    items = ask(path(name), threads=2)["items"]
    for i, number in {0: 3, 1: 1, 3: 2}.items():
        check({**items[i], "num_pixels": picture(number)[0].size // 3}, f"{name}:{i:08}", number, "abcd"[i])
        assert items[i]["num_pixels"] == 0  # nothing is downloaded to learn a size
    assert "404" in items[2]["error"] and f"{name}:00000002" in items[2]["error"], items[2]
server.shutdown()

tool.stdin.close()
assert tool.wait() == 0
print("read", num_files, "files and their damaged kin")
