"""The token store and the loader's plan at scale: synthetic pairs with the lengths of real ones.

python -m benchmarks.store_scale 160000 1600000

For each number of pairs: seconds to write the store, to open it, and of an optimizer step's members and micro-batches
(the first step draws the epoch's order); what the process's peak memory grew by while writing, and while planning.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.shapes import hh
from prefdag.data.token_store import Store, StoreWriter
from prefdag.models.packing import micro_batches, step_members

BATCH, STEPS, BUDGET = 64, 200, 16384


def main(num: int) -> str:
    lengths = hh(1024).tolist()
    ids = np.arange(2048).tolist()
    with tempfile.TemporaryDirectory() as folder:
        before, began = _peak_mb(), time.perf_counter()
        with StoreWriter(Path(folder) / "store", num_responses=2, scored=False) as writer:
            for row in range(num):
                prompt, chosen, rejected = lengths[row % len(lengths)]
                writer.add(ids[:prompt], [ids[:chosen], ids[:rejected]], row=row, prompt=row)
        written, after = time.perf_counter() - began, _peak_mb()
        began = time.perf_counter()
        store = Store.open(Path(folder) / "store")
        opened = time.perf_counter() - began
        began = time.perf_counter()
        all_lengths = store.lengths()
        seconds = []
        for step in range(STEPS):
            began_step = time.perf_counter()
            chosen_ids = step_members(step, len(store), BATCH, 0).tolist()
            planned = list(micro_batches(chosen_ids, all_lengths, BUDGET))
            assert sum(len(taken) for taken, _ in planned) == BATCH
            seconds.append(time.perf_counter() - began_step)
        size = sum(path.stat().st_size for path in (Path(folder) / "store").iterdir()) / 2**20
    return (
        f"| {num:,} | {size:,.0f} | {written:.1f} | {1e3 * opened:.1f} | {1e3 * seconds[0]:.1f} | "
        f"{1e3 * float(np.median(seconds[1:])):.2f} | {after - before:.0f} | {_peak_mb() - after:.0f} |"
    )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    names = (
        "pairs",
        "store, MB",
        "write, s",
        "open, ms",
        "first plan, ms",
        "a plan, ms",
        "+ MB writing",
        "+ MB planning",
    )
    print("| " + " | ".join(names) + " |")
    print("|---|---|---|---|---|---|---|---|")
    for number in sys.argv[1:]:
        print(main(int(number)), flush=True)
