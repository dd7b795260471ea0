"""One GRPO step of this repository against one of TRL's GRPOTrainer (1.16.0): CPU, one thread, fp32.

    python -m venv trl && trl/bin/pip install trl==1.16.0 torch==2.13.0 pillow     TRL's own environment, once
    python -m experiments.speed.trl compare --trl_python trl/bin/python            about a minute

A step: 16 queries of the built-in world (a picture each) x 8 responses at T = 1, a verifier that costs
nothing, one AdamW update of all weights, clipped, with a KL of 0.01 to a frozen copy of the start
policy.  `generation` is queries -> response ids and texts, `update` the rest of the step.  What makes it the
same step on both sides:

* Responses are recorded once with our engine.  Every step TRAINS on their ids, with the same rewards and
  advantages (TRL's formula).  Before that each side really SAMPLES, with EOS banned, as many tokens for every
  response as the longest recorded one has; the sampled ids are thrown away.
* TRL runs its public `trainer.train()`; only what generation returns is replaced.  Ours runs
Processor.prompt,
  sampler.sample and Policy.update; its picture cache is emptied before each step, as if all pictures were
  new.  TRL's data loader (it decodes the pictures) and its logging are outside the clock.
* Away from TRL's defaults, to match ours: loss_type "grpo", beta 0.01, no bias correction of the KL, fp32, no
  gradient checkpointing, constant learning rate 1e-4, beta2 0.95.  --trl_rows, its rows per forward, is the
  best of a sweep.
* Old log-probs cost neither side a pass: with one update per batch they are the current ones.
* Checked: equal prompt ids.  Printed: differences of the log-probs, and of loss and gradient norm over all
steps.

The sides are worker processes in their own environments, `ours --data FILE` and `trl --data FILE`, that do
one step per line on stdin; the driver lets them take turns.  `record --data FILE` writes the responses.
"""

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import mean, median, stdev

ROOT = Path(__file__).resolve().parents[2]
QUERIES, GROUP, LEARNING_RATE, WARM_UP = 16, 8, 1e-4, 2


def record(model: str, path: str) -> None:
    """Samples the responses that both sides train on; 1 to 7 of each 8 are called right."""
    import sampler
    import toy
    from data import Processor, batch_order
    from policy import Policy

    processor, pool, rows = Processor(model), toy.train_queries(), []
    engine = sampler.HFEngine(Policy(model, processor, reference=False).model, processor)
    for i, query in enumerate(pool[j] for j in batch_order(len(pool), 0, 0)[:QUERIES]):
        rollout = sampler.Rollout(query, processor.prompt(query), query.id)
        sampler.sample(engine, [rollout], GROUP, (0, 1))
        rewards = [float(k <= i % (GROUP - 1)) for k in range(GROUP)]
        rows.append({"question": query.question, "image": base64.b64encode(query.images[0]).decode(),
                     "prompt_ids": rollout.prompt.ids, "responses": [s.ids for s in rollout.samples_G],
                     "rewards": rewards,
                     "advantages": [(r - mean(rewards)) / (stdev(rewards) + 1e-4) for r in rewards]})
    Path(path).write_text(json.dumps(rows))


def count_positions(model) -> Counter:
    """Counts, from now on, what passes the two halves of a Qwen3-VL, padding included."""
    seen = Counter()
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(tokens=kwargs["inputs_embeds"].shape[:2].numel()),
        with_kwargs=True)
    model.model.visual.register_forward_pre_hook(lambda _, args: seen.update(patches=len(args[0])))
    return seen


def work_ours(args, rows: list[dict], longest: int, wait, answer) -> None:
    import torch

    import grpo
    import sampler
    from data import Processor, Query
    from policy import Policy, Row, UpdateSettings

    processor = Processor(args.model)
    policy = Policy(args.model, processor, LEARNING_RATE, warmup_steps=0, min_lr_ratio=1.0)   # constant rate
    for scorer in (policy.scorer, policy.reference):
        scorer.forbidden.zero_()                                      # TRL's distribution has all ids
    engine = sampler.HFEngine(policy.model, processor, max_new_tokens=longest)
    engine.forbidden = torch.tensor([*processor.forbidden_ids, processor.eos_id])
    queries = [Query(str(i), [base64.b64decode(r["image"])], r["question"], "-", "-")
               for i, r in enumerate(rows)]

    def group(prompt, row: dict) -> grpo.Group:
        # No engine log-probs: TRL has no correction engine -> trainer; its factor would be 1 but for banned
        # ids.
        members = [grpo.Member(ids, [], reward, advantage=advantage)
                   for ids, reward, advantage in zip(row["responses"], row["rewards"], row["advantages"])]
        return grpo.Group(prompt, members, grpo.GroupKind.ONLINE)

    with torch.no_grad():                                     # of the start policy, to be compared with TRL's
        packs = [policy.pack([Row(p, group(p, r).members)])
                 for p, r in zip(map(processor.prompt, queries), rows)]
        logprobs = [v for pack in packs for v in policy.logprobs(pack)[0].tolist()]
    step, sampling, one_forward = 0, count_positions(policy.model), count_positions(policy.reference.model)
    while wait():
        step += 1
        for forgotten in (sampling.clear, one_forward.clear, processor.picture.cache_clear,
                          processor.pixels.cache_clear):
            forgotten()
        began = time.perf_counter()
        rollouts = [sampler.Rollout(q, processor.prompt(q), q.id) for q in queries]
        sampler.sample(engine, rollouts, GROUP, (0, step))
        sampled, tokens = time.perf_counter(), sampling["tokens"]
        groups = [group(r.prompt, row) for r, row in zip(rollouts, rows)]
        metrics = policy.update(groups, step, UpdateSettings())
        ended = time.perf_counter()
        answer(times=[sampled - began, ended - sampled, ended - began], loss=metrics["loss"],
               logprobs=logprobs, grad_norm=metrics["grad_norm"],
               counts=[tokens, one_forward["tokens"], one_forward["patches"]])


def work_trl(args, rows: list[dict], longest: int, wait, answer) -> None:
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoTokenizer, Qwen3VLProcessor, TrainerCallback
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from trl import GRPOConfig, GRPOTrainer

    responses = [list(ids) for row in rows for ids in row["responses"]]
    rewards = [reward for row in rows for reward in row["rewards"]]

    class Trainer(GRPOTrainer):
        def _generate(self, prompts):
            began = time.perf_counter()
            out = super()._generate(prompts)
            self.generation, self.tokens = time.perf_counter() - began, sampling["tokens"]
            return out

        def _generate_single_turn(self, prompt_ids, *more, **kwargs):
            sampled, _ = super()._generate_single_turn(prompt_ids, *more, **kwargs)
            assert all(len(ids) == longest for ids in sampled)
            asked = [list(map(int, ids)) for ids in prompt_ids]
            assert asked == [row["prompt_ids"] for row in rows for _ in range(GROUP)]
            return responses, None

        def _get_per_token_logps_and_entropies(self, model, *more, **kwargs):
            out = super()._get_per_token_logps_and_entropies(model, *more, **kwargs)
            if model is self.ref_model:                                # in the order of `responses`, padded
                self.logprobs = [v for row, ids in zip(out[0].tolist(), responses) for v in row[:len(ids)]]
            return out

    class Turns(TrainerCallback):
        def on_step_begin(self, *_, **__) -> None:
            if not wait():
                sys.exit()
            sampling.clear(), one_forward.clear()
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__) -> None:
            self.whole = time.perf_counter() - self.began

        def on_log(self, *_, logs, **__) -> None:
            answer(times=[trainer.generation, self.whole - trainer.generation, self.whole], loss=logs["loss"],
                   logprobs=trainer.logprobs, grad_norm=float(logs["grad_norm"]),
                   counts=[trainer.tokens, one_forward["tokens"], one_forward["patches"]])

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    # This check looks up video processors, which need torchvision; there are no videos here.
    Qwen3VLProcessor.check_argument_for_proper_class = lambda *_: None
    processor = Qwen3VLProcessor(Qwen2VLImageProcessorPil.from_pretrained(args.model), tokenizer, None,
                                 chat_template=tokenizer.chat_template)
    data = [{"prompt": [{"role": "user", "content": row["question"]}],
             "images": [Image.open(io.BytesIO(base64.b64decode(row["image"])))]} for row in rows]
    banned = [tokenizer.convert_tokens_to_ids("<|image_pad|>"), tokenizer.eos_token_id]   # TRL's own, and EOS
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder, use_cpu=True, bf16=False, gradient_checkpointing=False, num_generations=GROUP,
            temperature=1.0, per_device_train_batch_size=args.trl_rows,
            gradient_accumulation_steps=len(rewards) // args.trl_rows, max_completion_length=longest,
            generation_kwargs={"suppress_tokens": banned}, shuffle_dataset=False,
            loss_type="grpo", scale_rewards="group", beta=0.01, use_bias_correction_kl=False, adam_beta2=0.95,
            learning_rate=LEARNING_RATE, lr_scheduler_type="constant", max_steps=1_000_000, logging_steps=1,
            report_to="none", save_strategy="no", disable_tqdm=True)
        trainer = Trainer(args.model, lambda **_: rewards, config, Dataset.from_list(data),
                          processing_class=processor, callbacks=[Turns()])
        sampling, one_forward = count_positions(trainer.model), count_positions(trainer.ref_model)
        trainer.train()


class Worker:
    """One side in its own process and environment.  What does not answer in time is killed."""

    def __init__(self, python: str, side: str, shared: list[str], folder: str, time_out: float):
        self.side, self.time_out, self.log = side, time_out, Path(folder, f"{side}.log")
        ones = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "HF_HUB_OFFLINE")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [python, "-m", "experiments.speed.trl", side, *shared], cwd=ROOT, text=True, stderr=log,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env={**os.environ, **dict.fromkeys(ones, "1"), "TOKENIZERS_PARALLELISM": "false"})

    def step(self) -> dict:
        timer = threading.Timer(self.time_out, self.process.kill)
        timer.start()
        try:
            print("step", file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            sys.exit(f"{self.log.read_text()[-3000:]}\n{self.side} stopped, or took over {self.time_out} s")
        finally:
            timer.cancel()


def compare(args) -> None:
    workers = []
    with tempfile.TemporaryDirectory() as folder:
        shared = ["--model", args.model, "--data", f"{folder}/recorded.json",
                  "--trl_rows", str(args.trl_rows)]
        subprocess.run([sys.executable, "-m", "experiments.speed.trl", "record", *shared], cwd=ROOT,
                       check=True, timeout=args.time_out)
        rows = json.loads(Path(folder, "recorded.json").read_text())
        try:
            for python, side in ((sys.executable, "ours"), (args.trl_python, "trl")):
                workers.append(Worker(python, side, shared, folder, args.time_out))
            ours, trl = zip(*([worker.step() for worker in workers] for _ in range(WARM_UP + args.rounds)))
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.wait()
    lengths = [len(ids) for row in rows for ids in row["responses"]]
    logprob = max(abs(a - b) for a, b in zip(ours[0]["logprobs"], trl[0]["logprobs"], strict=True))
    loss = max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, trl))
    norm = max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(ours, trl))
    print(f"{len(lengths)} responses of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all, to "
          f"prompts of {mean(len(row['prompt_ids']) for row in rows):.0f}; TRL: {args.trl_rows} rows a "
          f"forward\nlargest difference, ours - TRL: log-prob {logprob:.1e}; in all {len(ours)} steps, "
          f"loss {loss:.1e}, gradient norm {norm:.1e} (relative)\n\n"
          "| in a step, padding included | ours | TRL | TRL / ours |\n|---|---|---|---|")
    names = ("tokens, generation", "tokens, one forward of the update",
             "image patches, one forward of the update")
    for name, a, b in zip(names, ours[0]["counts"], trl[0]["counts"]):
        print(f"| {name} | {a} | {b} | {b / a:.2f} |")
    print(f"\n| median (min - max) of {args.rounds} rounds | ours, s | TRL, s | TRL / ours |\n"
          "|---|---|---|---|")
    for i, part in enumerate(("generation", "update", "whole step")):
        a, b = ([reply["times"][i] for reply in side[WARM_UP:]] for side in (ours, trl))
        ratios = [y / x for x, y in zip(a, b)]
        print(f"| {part} | " + " | ".join(f"{median(x):.3f} ({min(x):.3f} - {max(x):.3f})" for x in (a, b))
              + f" | {median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f}) |")


def main() -> None:
    parser = argparse.ArgumentParser("python -m experiments.speed.trl", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("compare", "record", "ours", "trl"))
    parser.add_argument("--model", default=str(ROOT / "toy" / "checkpoint"),
                        help="a Qwen3-VL checkpoint folder")
    parser.add_argument("--data", help="recorded responses (all but compare)")
    parser.add_argument("--trl_python", help="interpreter of TRL's environment (compare)")
    parser.add_argument("--trl_rows", type=int, default=32,
                        help="TRL's per_device_train_batch_size; divides 128")
    parser.add_argument("--rounds", type=int, default=9, help="counted ones")
    parser.add_argument("--time_out", type=float, default=300,
                        help="seconds for a step, the first with the start")
    args = parser.parse_args()
    if args.mode == "compare":
        return compare(args)
    import torch

    torch.set_num_threads(1)
    if args.mode == "record":
        return record(args.model, args.data)
    replies, rows = os.fdopen(os.dup(1), "w"), json.loads(Path(args.data).read_text())
    os.dup2(2, 1)                                         # libraries print too: stdout is for replies only
    work = work_ours if args.mode == "ours" else work_trl
    work(args, rows, max(len(ids) for row in rows for ids in row["responses"]), sys.stdin.readline,
         lambda **reply: print(json.dumps(reply), file=replies, flush=True))


if __name__ == "__main__":
    main()
