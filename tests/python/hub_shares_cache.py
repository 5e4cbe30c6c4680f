"""dfm and huggingface_hub (0.36, and 1.x in a folder of its own) share one cache; what goes wrong is said in one line."""
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loopback_hub import LoopbackHub
from peers import need

tool, hub1_packages = sys.argv[1:]
TOKEN, SECRET = "hf_secretsecretsecret", "hf_othersecret"
temporary = tempfile.TemporaryDirectory(prefix="dfm-hub-")
root = Path(temporary.name)


def write(path, data):
    path = root / "served" / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def noise(size, salt):
    return b"".join(hashlib.sha256(f"{salt} {i}".encode()).digest() for i in range(size // 32 + 1))[:size]


weights = write("models/org/name/model.safetensors", noise(3_000_000, "weights"))
config = write("models/org/name/config.json", b'{"width": 64}')
nested = write("models/org/name/sub/deep/file name.txt", b"nested\n")
table = write("datasets/org/set/data/train-00000-of-00001.parquet", noise(500_000, "table"))
write("models/org/private/config.json", b"private")
write("models/org/gated/config.json", b"gated")
FILES = {"model.safetensors": weights, "config.json": config, "sub/deep/file name.txt": nested}


def environment(cache, **more):
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and not name.lower().endswith("_proxy")}
    return kept | {"HF_HUB_CACHE": str(cache), "HF_HOME": str(root / "home"), "HF_ENDPOINT": hub.endpoint,
                   "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1",
                   "HUB_TOOL_RETRY_SECONDS": "0.02", "HUB_TOOL_TRIES": "3"} | more


def start(arguments, cache, limit=None, **more):
    def prepare():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    return subprocess.Popen([tool, *map(str, arguments)], env=environment(cache, **more), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, restore_signals=not limit, preexec_fn=prepare if limit else None)


def run(*arguments, cache, **more):
    """(exit code, stdout, the last line of stderr without `error: `); nothing may show a token."""
    process = start(arguments, cache, **more)
    out, err = process.communicate(timeout=60)
    out, err = out.decode(errors="replace"), err.decode()
    assert TOKEN not in out + err and SECRET not in out + err, "a token was printed"
    lines = err.splitlines()
    return process.returncode, out, lines[-1].removeprefix("error: ") if lines else ""


def fetch(*names, cache, kind="model", repo="org/name", **more):
    code, out, err = run("fetch", kind, repo, *names, cache=cache, **more)
    assert code == 0, err
    return [Path(line) for line in out.splitlines()]


def expect(code, text, *arguments, cache, **more):
    got = run(*arguments, cache=cache, **more)
    want = text.format(hub=hub.endpoint)
    assert (got[0], got[2]) == (code, want), f"\n got {got[0]} {got[2]}\nwant {code} {want}"


# The real clients, in a process of their own: a script gets the versions' packages and the cache.
CLIENT = """
import json, sys
job = json.load(sys.stdin)
if job["packages"]: sys.path.insert(0, job["packages"])
import huggingface_hub as hf
assert hf.__version__.startswith(job["version"]), hf.__version__
results = []
for kind, repo, name in job["files"]:
    found = hf.try_to_load_from_cache(repo, name, repo_type=kind) if job["offline"] else None
    if job["offline"] and not isinstance(found, str):
        results.append("no_exist" if found is hf._CACHED_NO_EXIST else "none")
        continue
    path = hf.hf_hub_download(repo, name, repo_type=kind, local_files_only=job["offline"])
    assert not job["offline"] or path == found
    results.append(path)
scan = hf.scan_cache_dir() if job["scan"] else None
print(json.dumps([results, [str(w) for w in scan.warnings] if scan else [], sum(r.nb_files for r in scan.repos) if scan else 0]))
"""
CLIENTS = {"0.36": None, "1.": hub1_packages}


def client(version, files, cache, offline, scan=False):
    job = {"packages": CLIENTS[version], "version": version, "files": files, "offline": offline, "scan": scan}
    process = subprocess.run([sys.executable, "-c", CLIENT], input=json.dumps(job).encode(), capture_output=True, timeout=60,
                             env=environment(cache, **({"HF_HUB_OFFLINE": "1"} if offline else {})))
    assert process.returncode == 0, process.stderr.decode()
    return json.loads(process.stdout)


ALL = [["model", "org/name", name] for name in FILES] + [["dataset", "org/set", "data/train-00000-of-00001.parquet"]]


def clients_find_ours():
    cache = root / "ours"
    paths = fetch(*FILES, cache=cache)
    paths += fetch("data/train-00000-of-00001.parquet", kind="dataset", repo="org/set", cache=cache)
    code, out, _ = run("fetch-if-there", "model", "org/name", "absent.json", cache=cache)
    assert (code, out) == (0, "none\n")
    for path, data in zip(paths, [*FILES.values(), table]):
        assert path.read_bytes() == data
        link = os.readlink(path)
        assert path.is_symlink() and link.startswith("../../") and "/blobs/" in link, link
    for version in CLIENTS:
        found, warnings, count = client(version, [*ALL, ["model", "org/name", "absent.json"]], cache, offline=True, scan=True)
        assert found == [*map(str, paths), "no_exist"], found
        assert warnings == [] and count == len(paths), (warnings, count)
    assert run("list", "model", "org/name", cache=root / "none")[1].splitlines() == sorted(FILES)
    # Only an absence is known: the scan has nothing to complain of either.
    assert run("fetch-if-there", "model", "org/name", "absent.json", cache=root / "absent")[1] == "none\n"
    assert client("0.36", [], root / "absent", offline=True, scan=True)[1] == []


def we_find_theirs():
    for version in CLIENTS:
        cache = root / f"theirs{version}"
        theirs = client(version, ALL, cache, offline=False)[0]
        count = len(hub.requests())
        ours = fetch(*FILES, cache=cache, HF_HUB_OFFLINE="1")
        ours += fetch(ALL[-1][2], kind="dataset", repo="org/set", cache=cache, TRANSFORMERS_OFFLINE="1")
        assert [str(path) for path in ours] == theirs
        commit = ours[0].relative_to(cache).parts[2]
        assert fetch("config.json", repo=f"org/name@{commit}", cache=cache) == [ours[1]]
        assert len(hub.requests()) == count, "offline, or a commit that is there: no request"
        assert run("list", "model", "org/name", cache=cache, HF_HUB_OFFLINE="1")[1].splitlines() == sorted(FILES)
        assert fetch(*FILES, cache=cache) == ours[:3]
        assert not hub.requests("GET")[count:]


def blob(cache, data=weights):
    return cache / "models--org--name/blobs" / hashlib.sha256(data).hexdigest()


def interrupted_downloads_continue():
    # Ours is killed in the middle; ours continues, then 0.36 continues another.
    for resumed_by in ("ours", "0.36", "1."):
        cache = root / f"killed-{resumed_by}"
        partial = blob(cache).with_name(blob(cache).name + ".incomplete")
        hub.fail("model.safetensors", chunk_seconds=0.05)
        process = start(["fetch", "model", "org/name", "model.safetensors"], cache)
        deadline = time.time() + 20
        while not (partial.exists() and partial.stat().st_size > 200_000):
            assert time.time() < deadline and process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.communicate()
        size = partial.stat().st_size
        assert 0 < size < len(weights) and not blob(cache).exists()
        if resumed_by == "ours":
            path = fetch("model.safetensors", cache=cache)[0]
        else:
            path = Path(client(resumed_by, ALL[:1], cache, offline=False)[0][0])
        assert path.read_bytes() == weights
        want = f"bytes={size}-" if resumed_by != "1." else None  # 1.x does not continue
        assert hub.requests("GET", "cdn")[-1][3] == want, hub.requests("GET", "cdn")[-1]
    # What 0.36 leaves: the beginning, in the same file. 1.x's own leftovers are in nobody's way.
    cache = root / "left"
    partial = blob(cache).with_name(blob(cache).name + ".incomplete")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(weights[:1_000_000])
    blob(cache).with_name(blob(cache).name + ".0123abcd.incomplete").write_bytes(weights[:5000])
    assert fetch("model.safetensors", cache=cache)[0].read_bytes() == weights
    assert hub.requests("GET", "cdn")[-1][3] == "bytes=1000000-"


def left_over(name, data):
    cache = root / name
    partial = blob(cache).with_name(blob(cache).name + ".incomplete")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(data)
    return cache


def strange_leftovers_are_handled():
    cache = left_over("damaged", b"x" * 1000)  # other bytes: the hash tells, all comes again
    assert fetch("model.safetensors", cache=cache)[0].read_bytes() == weights
    assert [entry[3] for entry in hub.requests("GET", "cdn")[-2:]] == ["bytes=1000-", None]
    count = len(hub.requests("GET"))
    cache = left_over("whole", weights)  # whole already: no download
    assert fetch("model.safetensors", cache=cache)[0].read_bytes() == weights and len(hub.requests("GET")) == count
    cache = left_over("longer", weights + b"more")
    assert fetch("model.safetensors", cache=cache)[0].read_bytes() == weights
    assert len(hub.requests("GET")) == count + 1
    cache = left_over("norange", weights[:1000])  # 200 in place of 206
    hub.fail("model.safetensors", no_range=True)
    assert fetch("model.safetensors", cache=cache)[0].read_bytes() == weights
    cache = left_over("range416", weights[:1000])
    hub.fail("model.safetensors", status=416)
    assert fetch("model.safetensors", cache=cache)[0].read_bytes() == weights
    blob(cache).resolve().write_bytes(b"cut")  # a blob that another program has cut
    assert fetch("model.safetensors", cache=cache)[0].read_bytes() == weights


def files_in_place_of_links_are_mended():
    cache = root / "copies"
    path = fetch("model.safetensors", cache=cache, HF_HUB_DISABLE_SYMLINKS="1")[0]
    assert not path.is_symlink()
    path.write_bytes(weights[:50])
    assert fetch("model.safetensors", cache=cache)[0].read_bytes() == weights


def processes_download_once():
    cache = root / "once"
    count = len(hub.requests("GET"))
    hub.fail("model.safetensors", chunk_seconds=0.01)
    processes = [start(["fetch", "model", "org/name", "model.safetensors"], cache) for _ in range(6)]
    paths = {process.communicate(timeout=60)[0] for process in processes}
    assert len(paths) == 1 and all(process.returncode == 0 for process in processes)
    assert len(hub.requests("GET")) == count + 1, hub.requests("GET")[count:]
    cache = root / "once-without-links"
    processes = [start(["fetch", "model", "org/name", "config.json"], cache, HF_HUB_DISABLE_SYMLINKS="1") for _ in range(3)]
    paths = {process.communicate(timeout=60)[0] for process in processes}
    assert len(paths) == 1 and len(hub.requests("GET")) == count + 2
    path = Path(paths.pop().decode().strip())
    assert path.read_bytes() == config and not path.is_symlink()


def faults_are_overcome():
    cache = root / "faults"
    hub.fail("model.safetensors", truncate=700_000, times=4)  # more than there are tries: each brings something
    hub.fail("config.json", on="HEAD", status=503, times=2)
    hub.fail("config.json", on="GET", status=429, headers={"Retry-After": "1"})
    begin = time.time()
    paths = fetch("model.safetensors", "config.json", cache=cache)
    assert [path.read_bytes() for path in paths] == [weights, config]
    assert time.time() - begin >= 1, "Retry-After was not waited for"
    hub.renamed["old/name"] = "org/name"
    assert fetch("config.json", repo="old/name", cache=cache)[0].read_bytes() == config
    hub.fail("config.json", on="HEAD", status=500, times=100)  # the hub is down: what the cache has
    assert fetch("config.json", cache=cache) == paths[1:]
    assert fetch("config.json", cache=cache, HF_ENDPOINT="http://127.0.0.1:1") == paths[1:]
    hub.faults.clear()
    # A file whose answer is lost is not absent.
    lone = root / "lone"
    fetch("config.json", cache=lone)
    hub.fail("model.safetensors", on="HEAD", status=503, times=100)
    code, out, err = run("fetch-if-there", "model", "org/name", "model.safetensors", cache=lone)
    assert code == 3 and out == "" and "status 503" in err, (code, out, err)
    hub.fail("org/name", on="API", status=500, times=100)
    assert run("list", "model", "org/name", cache=cache)[1].splitlines() == ["config.json", "model.safetensors"]
    hub.faults.clear()


def tokens_stay_where_they_belong():
    cache = root / "tokens"
    hub.private["org/private"] = TOKEN
    hub.gated["org/gated"] = TOKEN
    assert fetch("config.json", repo="org/private", cache=cache, HF_TOKEN=TOKEN)[0].read_bytes() == b"private"
    assert fetch("config.json", repo="org/gated", cache=cache, HUGGING_FACE_HUB_TOKEN=TOKEN)[0].read_bytes() == b"gated"
    # What looks like a path of the hub's, and is another host to a URL parser.
    where = f"http:/127.0.0.2:{hub.cdn.server_port}/org/name/config.json"
    hub.fail("config.json", on="HEAD", status=307, headers={"Location": where})
    assert run("fetch", "model", "org/name", "config.json", cache=root / "leak", HF_TOKEN=TOKEN)[0] == 3
    assert not hub.violations and hub.requests("HEAD", "hub")[-1][4] and not hub.requests("HEAD", "cdn")
    token_file = root / "token"
    token_file.write_text(TOKEN + "\n")
    assert fetch("model.safetensors", cache=cache, HF_TOKEN_PATH=str(token_file))[0].read_bytes() == weights
    assert hub.requests("HEAD", "hub")[-1][4] and not hub.requests("GET", "cdn")[-1][4]
    for repo, token, text in (
            ("org/private", "", "status 401 (RepoNotFound), want access; hint: check the name; if it is private or gated, set "
                                "HF_TOKEN to a token that may read it"),
            ("org/nothing", TOKEN, "status 404 (RepoNotFound), want access; hint: check the name; if it is private, the token "
                                   "in HF_TOKEN may not read it"),
            ("org/private", "hf_wrong", "status 401, want access; hint: HF_TOKEN holds no valid token"),
            ("org/gated", "", "status 401 (GatedRepo), want access; hint: ask for access at {hub}/org/gated, then set HF_TOKEN "
                              "to a token of that account"),
            ("org/gated", SECRET, "status 403 (GatedRepo), want access; hint: ask for access at {hub}/org/gated with the "
                                  "account that HF_TOKEN belongs to")):
        expect(3, f"hub model {repo}: config.json: got {text}", "fetch", "model", repo, "config.json", cache=root / "none",
               HF_TOKEN=token)


def errors_are_one_line():
    cache = root / "errors"
    name = "hub model org/name: "
    expect(3, name + "absent.json: got status 404 (EntryNotFound), want a file; hint: {hub}/org/name/tree/main lists what there "
           "is", "fetch", "model", "org/name", "absent.json", cache=cache)
    expect(3, "hub dataset org/set@v9: x: got status 404 (RevisionNotFound), want a branch, tag or commit; hint: "
           "{hub}/datasets/org/set/refs lists the branches and tags", "fetch", "dataset", "org/set@v9", "x", cache=cache)
    hub.fail("config.json", on="HEAD", status=429, headers={"Retry-After": "3600"})
    expect(3, name + "config.json: got status 429, too many requests, want fewer; hint: the hub asks to wait 3600 s",
           "fetch", "model", "org/name", "config.json", cache=cache)
    hub.fail("config.json", on="HEAD", status=500, times=3)
    expect(3, name + "config.json: got status 500 3 times from {hub}, want the file; hint: the hub has a problem, try again "
           "later", "fetch", "model", "org/name", "config.json", cache=cache)
    hub.fail("config.json", truncate=0, times=3)
    code, _, err = run("fetch", "model", "org/name", "config.json", cache=cache)
    assert code == 3 and err.startswith(name + "config.json: got 0 of 13 bytes (") and \
        err.endswith(", 3 tries), want all; hint: run again: the download continues"), err
    hub.fail("config.json", on="GET", status=416, times=3)
    expect(3, name + "config.json: got 0 of 13 bytes (status 416, 3 tries), want all; hint: run again: the download continues",
           "fetch", "model", "org/name", "config.json", cache=cache)
    hub.fail("config.json", wrong=True)
    bad = bytes([config[0] ^ 1]) + config[1:]
    expect(3, name + f"config.json: got git sha1 {hashlib.sha1(b'blob 13' + bytes(1) + bad).hexdigest()}, want "
           f"{hashlib.sha1(b'blob 13' + bytes(1) + config).hexdigest()}; hint: the bytes were changed on their way (proxy, "
           "mirror), run again", "fetch", "model", "org/name", "config.json", cache=cache)
    hub.fail("config.json", on="HEAD", hang_seconds=2, times=3)
    expect(3, name + "config.json: got no answer (no byte for 0.3 s) 3 times from {hub}, want the file; hint: check the "
           "network, proxy and HF_ENDPOINT; what has come so far is kept", "fetch", "model", "org/name", "config.json",
           cache=cache, HF_HUB_ETAG_TIMEOUT="0.3")
    for header, value, text in (("X-Repo-Commit", "../../x", "X-Repo-Commit '../../x', want 40 hex digits"),
                                ("ETag", '"../../x"', "ETag '\"../../x\"', want a hash")):
        hub.headers["config.json"] = {header: value}
        expect(3, name + f"config.json: got {text}; hint: {{hub}} does not answer as a hub: check HF_ENDPOINT and the proxy",
               "fetch", "model", "org/name", "config.json", cache=cache)
    hub.headers.clear()
    hub.headers["org/name"] = ["a", "../../etc/passwd"]
    expect(3, name + "list of files: got '../../etc/passwd', want paths inside the repository", "list", "model", "org/name",
           cache=cache)
    hub.headers.clear()
    expect(2, name + "../x: got a path that leaves the repository, want one inside", "fetch", "model", "org/name", "../x",
           cache=cache)
    assert not list(cache.rglob("*config.json")) and not (root / "x").exists()
    expect(3, name + f"config.json: got nothing in the cache in {root}/empty while HF_HUB_OFFLINE is set, want it there; hint: "
           "run once with a network and without HF_HUB_OFFLINE", "fetch", "model", "org/name", "config.json",
           cache=root / "empty", HF_HUB_OFFLINE="1")
    full = root / "full"
    path = blob(full)
    expect(6, f"{path}.incomplete: cannot write: File too large; hint: free some space", "fetch", "model", "org/name",
           "model.safetensors", cache=full, limit=1_000_000)
    assert not path.exists() and fetch("model.safetensors", cache=full)[0].read_bytes() == weights
    hub.headers["model.safetensors"] = {"X-Linked-Size": str(1 << 60)}
    code, _, err = run("fetch", "model", "org/name", "model.safetensors", cache=root / "huge")
    assert code == 6 and "of free disk space in" in err and "want 1048576.0 TiB; hint: free some" in err, err
    hub.headers.clear()
    (root / "file").write_text("")
    expect(3, f"hub cache: cannot make folder {root}/file/models--org--name/blobs: Not a directory; hint: name a folder of your "
           "own with HF_HUB_CACHE", "fetch", "model", "org/name", "config.json", cache=root / "file")
    hub.faults.clear()


def pictures_come_by_url():
    cache = root / "pictures"
    url = f"{hub.endpoint}/org/name/resolve/main/model.safetensors"  # a redirect to the other port
    process = start(["http-get", url, len(weights)], cache, HF_TOKEN=TOKEN)
    assert process.communicate()[0] == weights and not hub.requests()[-2][4], "no token for pictures"
    hub.fail("config.json", status=500, times=2)
    url = f"{hub.endpoint}/org/name/resolve/main/config.json"
    assert run("http-get", url, 100, cache=cache)[1] == config.decode()
    expect(3, f"{url}: got more than 12 B, want at most that", "http-get", url, 12, cache=cache)
    expect(3, f"{url}: got HF_HUB_OFFLINE, want a network; hint: unset HF_HUB_OFFLINE", "http-get", url, 100, cache=cache,
           HF_HUB_OFFLINE="1")
    expect(3, f"{url}x: got status 404 (EntryNotFound), want status 200", "http-get", url + "x", 100, cache=cache)
    expect(3, "file:///etc/passwd: got no http or https address, want one", "http-get", "file:///etc/passwd", 100, cache=cache)


need("huggingface_hub")
if not os.path.isdir(hub1_packages):
    print(f"missing: {hub1_packages}; hint: script/test installs what the tests compare with")
    sys.exit(1 if os.environ.get("CI") == "true" else 77)
with LoopbackHub(root / "served") as hub:
    for check in (clients_find_ours, we_find_theirs, interrupted_downloads_continue, strange_leftovers_are_handled,
                  files_in_place_of_links_are_mended, processes_download_once, faults_are_overcome, tokens_stay_where_they_belong,
                  errors_are_one_line, pictures_come_by_url):
        begin = time.time()
        check()
        print(f"{check.__name__}: {time.time() - begin:.1f} s", flush=True)
    assert not hub.violations, hub.violations
