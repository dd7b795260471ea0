"""Stage 1, judge, stage 2, judge: as one continuous vLLM batch against one after the other, on the built-in
world.

    python tests/benchmark_continuous.py [--queries 32] [--rounds 6] [--step_ms 0 30]

Each round collects the same batch both ways with the same seeds (their order changes from round to round);
the judge is the world's exact verifier, held up for 0.5 to 2 s by a draw that depends on the response
alone.  --step_ms holds up each decoding step to at least that time, as a large model on a GPU would take; 0
is this machine's own speed.  Printed: seconds of both, their ratio per round, and how many responses differ
in their ids, out of how many.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import toy
from training.config import Config
from contextrl import collect
from data import Processor, batch_order
from sampler import VLLMEngine


class SlowVerifier(toy.ToyVerifier):
    def judge_one(self, query, text):
        time.sleep(random.Random(f"{query.id} {text}").uniform(0.5, 2.0))
        return super().judge_one(query, text)

    def judge(self, queries, texts):
        with ThreadPoolExecutor(256) as pool:
            return list(pool.map(self.judge_one, queries, texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(toy.__file__).parent / "assets" / "toy"))
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 64], help="slots of the engine")
    parser.add_argument("--step_ms", type=float, nargs="+", default=[0, 30])
    args = parser.parse_args()
    processor, pool = Processor(args.model), toy.train_queries()
    config = Config(engine="vllm", judge_concurrency=256, output_dir=tempfile.gettempdir()).resolve()
    print("| slots | step ms | one after the other, s | continuous, s | ratio: median (range) | differ |\n"
          "|---|---|---|---|---|---|")
    engines = []                                             # a deleted engine takes its process group along
    for rows in args.rows:
        engine = VLLMEngine(args.model, processor, max_context=512, max_rows=rows)
        engines.append(engine)
        step, at_least = engine.step, [0.0]

        def held_up():
            began = time.perf_counter()
            out = step()
            time.sleep(max(0.0, at_least[0] - (time.perf_counter() - began)))
            return out
        engine.step = held_up
        for step_ms in args.step_ms:
            at_least[0] = step_ms / 1000
            seconds, differ, total = {True: [], False: []}, 0, 0
            for round_ in range(args.rounds + 1):
                order = batch_order(len(pool), round_, 0)
                batch, found = [pool[i] for i in order[:args.queries]], {}
                for barrier in ((True, False) if round_ % 2 else (False, True)):
                    began = time.perf_counter()
                    found[barrier] = collect(batch, [q.id for q in batch], round_, replace(config, barrier=barrier),
                                             engine, processor, SlowVerifier())
                    if round_:                               # the first round warms up
                        seconds[barrier].append(time.perf_counter() - began)
                for a, b in zip(found[True], found[False], strict=True):
                    one, other = ([s.ids for s in r.samples_G + r.retries_G] for r in (a, b))
                    differ += sum(x != y for x, y in zip(one, other)) + abs(len(one) - len(other))
                    total += max(len(one), len(other))
            ratios = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
            print(f"| {rows} | {step_ms:g} | {statistics.median(seconds[True]):.2f} | "
                  f"{statistics.median(seconds[False]):.2f} | {statistics.median(ratios):.2f} "
                  f"({min(ratios):.2f}-{max(ratios):.2f}) | {differ} of {total} |", flush=True)


if __name__ == "__main__":
    main()
