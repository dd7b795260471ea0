"""Stage 1, judge, stage 2, judge: as one continuous vLLM batch against one after the other.

    python -m experiments.speed.continuous [--queries 32] [--rounds 6] [--step_ms 0 30]

Each round collects the same batch of the built-in world both ways with the same seeds (their order changes
from round to round); the judge is the world's exact verifier, held up for 0.5 to 2 s by a draw that depends
on the response alone.  --step_ms holds up each decoding step to at least that time, as a large model on a GPU
would take; 0 is this machine's own speed.  Printed: seconds of both, their ratio per round, and how many
responses differ in their ids, out of how many.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import toy
from contextrl import collect
from data import batch_order
from sampler import Rollout
from training import parts
from training.config import Config


class SlowVerifier(toy.ToyVerifier):
    def judge_one(self, query, text):
        time.sleep(random.Random(f"{query.id} {text}").uniform(0.5, 2.0))
        return super().judge_one(query, text)

    def judge(self, queries, texts):
        with ThreadPoolExecutor(256) as pool:
            return list(pool.map(self.judge_one, queries, texts))


def hold_up(engine) -> list[float]:
    """Makes each step of the engine take at least as many seconds as the number in the list says."""
    step, at_least = engine.step, [0.0]

    def slow_step():
        began = time.perf_counter()
        out = step()
        time.sleep(max(0.0, at_least[0] - (time.perf_counter() - began)))
        return out
    engine.step = slow_step
    return at_least


def compare(engine, config: Config, pool: list, args: argparse.Namespace) -> str:
    """All rounds -> the cells of one row."""
    seconds, differ, total = {True: [], False: []}, 0, 0
    for number in range(args.rounds + 1):
        batch = [pool[i] for i in batch_order(len(pool), number, 0)[:args.queries]]
        rollouts = {}
        for barrier in ((True, False) if number % 2 else (False, True)):
            rollouts[barrier] = [Rollout(query, engine.processor.prompt(query), query.id) for query in batch]
            run_parts = SimpleNamespace(config=replace(config, barrier=barrier), engine=engine,
                                        verifier=SlowVerifier(), retry_template=parts.retry_prompt("", batch))
            began = time.perf_counter()
            collect(rollouts[barrier], number, run_parts)
            if number:                                   # the first round warms up
                seconds[barrier].append(time.perf_counter() - began)
        for a, b in zip(rollouts[True], rollouts[False], strict=True):
            one, other = ([s.ids for s in r.samples_G + r.retries_G] for r in (a, b))
            differ += sum(x != y for x, y in zip(one, other)) + abs(len(one) - len(other))
            total += max(len(one), len(other))
    ratios = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    return (f"{statistics.median(seconds[True]):.2f} | {statistics.median(seconds[False]):.2f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | {differ} of {total}")


def main() -> None:
    parser = argparse.ArgumentParser("python -m experiments.speed.continuous", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 64], help="slots of the engine")
    parser.add_argument("--step_ms", type=float, nargs="+", default=[0, 30])
    args = parser.parse_args()
    config = Config(engine="vllm", judge_concurrency=256, output_dir=tempfile.gettempdir()).resolve()
    print("| slots | step ms | one after the other, s | continuous, s | ratio: median (range) | differ |\n"
          "|---|---|---|---|---|---|")
    engines = []                                             # a deleted engine takes its process group along
    for rows in args.rows:
        engines.append(parts.open_engine(args.model, "vllm", max_context=512, max_rows=rows,
                                         memory_share=0.4))
        at_least = hold_up(engines[-1])
        for step_ms in args.step_ms:
            at_least[0] = step_ms / 1000
            cells = compare(engines[-1], config, toy.train_queries(), args)
            print(f"| {rows} | {step_ms:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
