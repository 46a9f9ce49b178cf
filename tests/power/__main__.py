"""`python -m tests.power --cuts 1000 --kills 300`: the whole run, with its controls."""

import argparse
import tempfile
from pathlib import Path

from tests.power.harness import CORRUPT, DOUBLE, LOSS, build_shim, judge, kill, record


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.power")
    parser.add_argument("--cuts", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=0, help="kill -9 at random moments, sealing and expiry among them")
    parser.add_argument("--steps", type=int, default=150, help="commits of one writer's life")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        if options.kills:
            result = kill(Path(directory) / "kills", options.kills, options.seed)
            for turn, kind, text in result.wrong:
                print(f"  kill {turn}: {kind}: {text}")
            print(f"kill -9: {result.cuts} times, {len(result.wrong)} wrong", flush=True)
            failed += len(result.wrong)
        shim = build_shim(Path(directory))
        for sync in ("FULL", "NORMAL", "OFF") if options.cuts else ():
            count = options.cuts if sync == "FULL" else max(20, options.cuts // 10)
            done = lost = corrupt = doubled = 0
            seed = options.seed
            while done < count:
                work = Path(directory) / f"{sync}-{seed}"
                record(work, shim, seed=seed, steps=options.steps, sync=sync)
                result = judge(work, min(100, count - done), seed, scratch=work)
                done, seed = done + result.cuts, seed + 1
                lost, corrupt, doubled = (
                    lost + result.count(LOSS),
                    corrupt + result.count(CORRUPT),
                    doubled + result.count(DOUBLE),
                )
                if sync == "FULL":
                    for place, kind, text in result.wrong:
                        print(f"  seed {seed - 1}, place {place}: {kind}: {text}")
            print(f"synchronous={sync:7} {done:5} cuts: lost {lost}, corrupt {corrupt}, doubled {doubled}", flush=True)
            failed += (lost + corrupt + doubled > 0) == (sync == "FULL")
    return 1 if failed else 0


raise SystemExit(main())
