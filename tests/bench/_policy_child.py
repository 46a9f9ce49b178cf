"""One contender of bench-policy in a process of its own; prints JSON. `marisa_*` run under Debian's Python."""

import json
import os
import random
import sys
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
SAMPLE = 20_000


def peak_mb() -> float:
    return _field("/proc/self/status", ("VmHWM",))


def private_mb() -> float:
    return _field("/proc/self/smaps_rollup", ("Private_Clean", "Private_Dirty"))


def _field(path: str, names: tuple[str, ...]) -> float:
    with open(path) as file:
        return sum(int(line.split()[1]) for line in file if line.split(":")[0] in names) / 1024


def names_of(path: str) -> list[bytes]:
    return Path(path).read_bytes().split(b"\n")[:-1]


def samples(path: str) -> dict[str, list[bytes]]:
    """Names to ask, by what should come of it: enough of them that the caches see a working set."""
    names = names_of(path)
    rnd = random.Random(1)
    picked = rnd.sample(names, min(4 * SAMPLE, len(names)))
    del names
    deep = [n for n in picked if n.count(b".") == 2][:SAMPLE]
    flat = [n for n in picked if n.count(b".") == 1][:SAMPLE]
    unknown = [b"%x.example%d.net" % (rnd.getrandbits(40), rnd.getrandbits(16)) for _ in range(SAMPLE)]
    return {
        "hit3": deep,
        "below3": [b"www." + n for n in flat],
        "hit5": [b"a.b.c." + n for n in flat],
        "miss3": [b"www." + n.partition(b".")[2] for n in unknown],
        "miss5": [b"a.b." + n for n in unknown],
    }


def timed(look_up, names: list[bytes]) -> float:
    """µs a name, without the loop's own cost."""
    best = 1e9
    for _ in range(3):
        start = time.process_time()
        for name in names:
            look_up(name)
        middle = time.process_time()
        for _ in names:
            pass
        best = min(best, 2 * middle - start - time.process_time())
    return best / len(names) * 1e6


def walk(held, dot=b"."):
    """What a filter in Python does: the name, then its parents, against a set (or a trie)."""

    def look_up(name) -> bool:
        while name:
            if name in held:
                return True
            name = name.partition(dot)[2]
        return False

    return look_up


def engine_of(image: str):
    from agent.decider import map_image
    from policy.engine import Engine

    return Engine([map_image(image)])


def compile_(names: str, image: str) -> dict:
    from agent.compiler import compile_policy
    from policy.uci import parse

    start = time.process_time()
    sections = parse(
        f"config list 'all'\n\toption file '{os.path.basename(names)}'\n\toption allow_public_suffix '1'\n"
    )
    report = compile_policy(sections, os.path.dirname(names), image)
    assert report.built is not None
    assert report.lists[0].in_force == report.lists[0].entries
    return {
        "peak_mb": peak_mb(), "s": time.process_time() - start, "size": report.built.size, "names": report.built.names,
    }  # fmt: skip


def set_build(names: str) -> dict:
    before, start = private_mb(), time.process_time()
    held = set()
    with open(names, "rb") as file:
        for line in file:
            held.add(line.rstrip(b"\n"))
    return {"peak_mb": peak_mb(), "private_mb": private_mb() - before, "s": time.process_time() - start, "n": len(held)}


def decide(names: str, image: str) -> dict:
    asked = samples(names)
    engine = engine_of(image)
    held = set(names_of(names))
    table = dict.fromkeys(asked["hit3"])
    result = {}
    for key, sample in asked.items():
        result[key] = timed(lambda name: engine.decide(name, 0, 1.8e9), sample)
        result["set_" + key] = timed(walk(held), sample)
    result["dict"] = timed(table.__contains__, asked["miss3"])
    return result


def private(names: str, image: str) -> dict:
    """What a second hook process pays: its imports are there, and the first process has the pages in memory."""
    reads, writes = os.pipe()
    first = os.fork()
    if first == 0:
        mapped = engine_of(image).images[0].buffer
        sum(mapped[at] for at in range(0, len(mapped), 4096))
        os.write(writes, b"!")
        time.sleep(600)
        os._exit(0)
    os.read(reads, 1)
    engine_of(image)  # imports, and what the allocator takes once
    asked = samples(names)
    for part in asked.values():
        timed(bytes.islower, part)
    before = private_mb()
    engine = engine_of(image)
    for part in asked.values():
        for name in part:
            engine.decide(name, 0, 1.8e9)
    after = private_mb()
    os.kill(first, 9)
    os.waitpid(first, 0)
    return {"private_mb": after - before}


def open_(image: str) -> dict:
    from agent.decider import map_image

    map_image(image)  # the page cache is warm, as it is for every process but the first
    start = time.perf_counter()
    map_image(image)
    return {"ms": 1000 * (time.perf_counter() - start)}


def delta_make(old: str, names: str, new: str, delta: str) -> dict:
    from agent.compiler import compile_policy
    from agent.decider import map_image
    from policy.delta import make_delta
    from policy.uci import parse

    sections = parse(
        f"config list 'all'\n\toption file '{os.path.basename(names)}'\n\toption allow_public_suffix '1'\n"
    )
    compile_policy(sections, os.path.dirname(names), new, base_path=old)
    data = make_delta(map_image(old), map_image(new))
    Path(delta).write_bytes(data)
    return {"octets": len(data), "full": os.path.getsize(new)}


def delta_apply(old: str, delta: str, new: str) -> dict:
    from agent.decider import map_image
    from policy.delta import apply_delta

    data = Path(delta).read_bytes()
    image = map_image(old)
    image.release()
    start = time.process_time()
    with open(new, "w+b") as out:
        apply_delta(image, data, out)
    return {"s": time.process_time() - start, "peak_mb": peak_mb()}


def update(names: str, directory: str) -> dict:
    """Everything that happens when a list changes: fetched from a file, read to its end, compiled, swapped."""
    from agent.compiler import chunks_of, compile_policy
    from agent.lists import Answer, refresh
    from policy.rules import load_policy
    from policy.uci import parse

    os.makedirs(directory)
    sections = parse("config list 'all'\n\toption url 'https://lists.example/all'\n\toption allow_public_suffix '1'\n")
    outcomes = refresh(
        load_policy(sections), directory, now_s=1.0, fetch=lambda url, headers: Answer(200, {}, chunks_of(names))
    )
    assert outcomes[0].result == "new", outcomes
    compile_policy(sections, directory, os.path.join(directory, "policy.gp"))
    return {"peak_mb": peak_mb()}


def verdicts(names: str, image: str, count: str) -> dict:
    from policy.verdict import Verdict

    engine = engine_of(image)
    decide_, block = engine.decide, Verdict.BLOCK
    missed = missed_below = lookalikes = false = 0
    with open(names, "rb") as file:
        for line in file:
            name = line.rstrip(b"\n")
            missed += decide_(name, 0, 1.8e9).verdict is not block
            missed_below += decide_(b"x-1." + name, 0, 1.8e9).verdict is not block
    with open(names, "rb") as file:
        for line in islice(file, 200_000):
            name = line.rstrip(b"\n")
            _, _, rest = name.partition(b".")
            if b"." in rest:
                continue
            lookalikes += decide_(b"x\\." + name, 0, 1.8e9).verdict is block
    rnd = random.Random(11)
    left = int(count)
    while left:
        # Random octets as names of three labels; none of them is on the list, whose top-level domains have letters.
        part = rnd.randbytes(16 * 4096).hex()
        for at in range(0, min(left, 4096) * 32, 32):
            name = f"{part[at : at + 12]}.{part[at + 12 : at + 28]}.q{part[at + 28 : at + 31]}".encode()
            if decide_(name, 0, 1.8e9).verdict is block:
                false += 1
        left -= min(left, 4096)
    return {"missed": missed, "missed_below": missed_below, "lookalikes": lookalikes, "false": false}


def marisa_build(names: str, path: str) -> dict:
    import marisa

    start = time.process_time()
    keys = marisa.Keyset()
    with open(names) as file:
        for line in file:
            keys.push_back(line.rstrip("\n"))
    trie = marisa.Trie()
    trie.build(keys)
    trie.save(path)
    return {"peak_mb": peak_mb(), "s": time.process_time() - start, "size": os.path.getsize(path)}


def _marisa(path: str):
    import marisa

    trie = marisa.Trie()
    trie.mmap(path)
    agent = marisa.Agent()

    class Held:
        def __contains__(self, name: str) -> bool:
            agent.set_query(name)
            return trie.lookup(agent)

    return Held()


def marisa_decide(names: str, path: str) -> dict:
    look_up = walk(_marisa(path), ".")
    return {key: timed(look_up, [n.decode() for n in sample]) for key, sample in samples(names).items()}


def marisa_private(names: str, path: str) -> dict:
    import marisa

    assert marisa
    asked = samples(names)
    before = private_mb()
    look_up = walk(_marisa(path), ".")
    for sample in asked.values():
        for name in sample:
            look_up(name.decode())
    return {"private_mb": private_mb() - before}


if __name__ == "__main__":
    sys.stdout.write(
        json.dumps(globals()[sys.argv[1] + ("_" if sys.argv[1] in ("compile", "open") else "")](*sys.argv[2:]))
    )
