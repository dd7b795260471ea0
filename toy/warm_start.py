"""The warm start of the built-in world (world.py): a tiny Qwen3-VL, made from nothing and trained on
conversations.

It learns captions (perception), worked solutions, the guess style, the misconceptions, and stage-2
conversations.  The latter never hold a hidden word, and a made-up word means something else in each, so the
report has to be read; and a report only excludes a reading, so another one has to be tried.

    python -m toy.warm_start        remakes the shipped checkpoint: 11 to 17 minutes on two cores
"""

import argparse
import json
import random
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from data import Processor, Query, retry_message
from grpo import Member
from policy import Policy, Row
from reward import is_independent
from sampler import HFEngine, Rollout, resample, sample
from toy.verifiers import ToyVerifier, boxed_answer
from toy.world import (
    MADE_UP,
    MISCONCEPTION,
    NONCE_NOUNS,
    NONCE_OPERATORS,
    NOUNS,
    OPERATORS,
    PREAMBLES,
    RETRY_PROMPT,
    Problem,
    answer_text,
    combine,
    draw_problem,
    draw_scene,
    make_query,
    render,
    solve,
)

POOL = 8000                                                      # pictures to train on


def caption(scene) -> str:
    return " ; ".join(" ".join(cell) if cell else "empty" for cell in scene)


def plain_example(rng: random.Random, scenes: list, captions: float) -> tuple[tuple, str, str]:
    """-> (scene, question, answer): one single-turn conversation.  `captions`: their share."""
    kind = rng.choices(["ordinary", "shortcut", "hard"], [0.48, 0.26, 0.26])[0]
    if rng.random() < captions:
        scene = rng.choice(scenes)
        return scene, "describe ?", caption(scene)
    if kind == "shortcut" and rng.random() < 0.40:
        problem, guessed = draw_problem("shortcut", rng, scenes), "yes" if rng.random() < 0.97 else "no"
        return problem.scene, problem.question, solve({"answer": guessed}, "guess")
    # Whoever counts has learned to compare as well: worked solutions come from the balanced twin.
    problem = draw_problem("balanced" if kind == "shortcut" else kind, rng, scenes)
    return problem.scene, problem.question, solve(problem.facts(MISCONCEPTION))


def retry_example(rng: random.Random, scenes: list | None = None) -> tuple[Problem, str, str, str]:
    """-> (problem, failed response, report, better response): one stage-2 conversation."""
    verifier = ToyVerifier()
    while True:
        problem = draw_problem(rng.choices(["ordinary", "balanced"], [0.8, 0.2])[0], rng, scenes)
        truth, belief = {}, {}
        if problem.threshold is None and rng.random() < 0.75:                    # a made-up word was misread
            if rng.random() < 0.4:
                word = problem.operator = rng.choice(NONCE_OPERATORS)
                meanings = rng.sample(list(OPERATORS), 2)
            else:
                place = rng.randrange(2)
                word = problem.words[place] = rng.choice(NONCE_NOUNS)
                meanings = rng.sample([n for n in NOUNS if n != problem.words[1 - place]], 2)
            truth[word], belief[word] = meanings
        facts, wrong, style = problem.facts(truth), problem.facts(belief), "canonical"
        if problem.threshold is not None and rng.random() < 0.6:
            style = "guess"
        elif not truth or rng.random() < 0.15:                # a miscount, or a slip in the arithmetic
            corrupt(problem, wrong, rng)
        failed = solve(wrong, style)
        report = verifier.judge_facts(facts, failed).report
        if report:
            break
    better = solve(facts)
    if rng.random() < 0.25:
        better = f"{rng.choice(PREAMBLES)} {better}"
    return problem, failed, "" if rng.random() < 0.12 else report, better


def corrupt(problem: Problem, facts: dict, rng: random.Random) -> None:
    """Puts one wrong number into facts; what follows from it, follows."""
    place = rng.randrange(len(facts["counts"]) + 1)
    off = rng.choice([-1, 1]) if rng.random() < 0.8 else rng.choice([-2, 2])
    if place < len(facts["counts"]):
        facts["counts"][place] = max(0, facts["counts"][place] + off)
        facts["value"] = combine(facts["operator"], facts["counts"])
    else:
        facts["value"] = max(0, facts["value"] + off)
    facts["answer"] = answer_text(facts["value"], problem.threshold)


def vocabulary() -> list[str]:
    """Every word of the world, so that the tokenizer holds each as one token."""
    words = {*NOUNS, *OPERATORS, *MADE_UP}
    words |= {str(n) for n in range(28)} | {f"\\boxed{{{a}}}" for a in [*range(28), "yes", "no"]}
    retry = RETRY_PROMPT.replace("\n---\n", " ").replace("{report}", "")
    reports = ("step is wrong not asked it clear no result shown final answer the does follow "
               "steps do lead to an")
    questions = "how many is over ? ; describe empty looks so , : ."
    for text in (retry, *PREAMBLES, reports, questions, "user assistant"):
        words |= set(text.split())
    return sorted(words)


def build_checkpoint(folder: Path) -> None:
    """An untrained tiny Qwen3-VL with a real tokenizer, image processor and chat template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?[^\s]+|\s"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [form for word in vocabulary() for form in (word, f" {word}")]
    trainer = trainers.BpeTrainer(vocab_size=4000, min_frequency=1, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus, trainer)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
               "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE,
                                   eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left")
    for word in vocabulary():
        assert len(fast(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word
    ids = {s: fast.convert_tokens_to_ids(s) for s in special}
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=dict(vocab_size=len(fast), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=32, rope_parameters=rope,
                         max_position_embeddings=4096, rms_norm_eps=1e-6, tie_word_embeddings=True,
                         dtype="float32", bos_token_id=None, eos_token_id=ids["<|im_end|>"],
                         pad_token_id=ids["<|endoftext|>"]),
        vision_config=dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=4, patch_size=16,
                           spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=128,
                           num_position_embeddings=36, deepstack_visual_indexes=[0], dtype="float32"),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3,
                             image_std=[0.5] * 3, size={"shortest_edge": 1024, "longest_edge": 3_000_000}
                             ).save_pretrained(folder)
    # vLLM builds the whole processor, videos included; that class needs torchvision, the file does not.
    video = {"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": 16, "merge_size": 2,
             "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (Path(folder) / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")


CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""


def warm_start(out: Path, steps: int, seed: int, rows_per_step: int = 96, retries_per_step: int = 40) -> None:
    """Supervised training from scratch; prints held-out accuracies every 200 steps."""
    build_checkpoint(out)
    processor = Processor(str(out))
    policy = Policy(str(out), processor, learning_rate=2e-3, total_steps=steps, warmup_steps=60,
                    min_lr_ratio=0.02, weight_decay=0.01, reference=False)
    rng, start = random.Random(seed), time.time()
    scenes = [draw_scene(rng) for _ in range(POOL)]
    images = {scene: render(scene, rng) for scene in scenes}
    processor.pixels = lru_cache(maxsize=POOL)(processor._pixels)        # every picture is decoded once

    def row(scene, question: str, answer: str, failed: str = "", report: str | None = None) -> Row:
        prompt = processor.prompt(Query("warm start", [images[scene]], question, "-", "-"))
        if report is not None:
            message = retry_message(report, RETRY_PROMPT)
            prompt = processor.follow_up(prompt, processor.encode_response(failed), message)
        return Row(prompt, [Member(processor.encode_response(answer), [], 1.0)])

    for step in range(1, steps + 1):
        captions = max(0.12, 0.9 - step / 300)  # first see, then reason: captions alone teach perception fast
        rows = [row(*plain_example(rng, scenes, captions)) for _ in range(rows_per_step)]
        for problem, failed, report, better in (retry_example(rng, scenes) for _ in range(retries_per_step)):
            rows.append(row(problem.scene, problem.question, better, failed, report))
        total = 0.0
        policy.optimizer.zero_grad()
        tokens = sum(len(r.members[0].ids) for r in rows)
        for part in (rows[:rows_per_step], rows[rows_per_step:]):         # alike lengths together
            loss = -policy.logprobs(policy.pack(part))[0].sum() / tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        for group in policy.optimizer.param_groups:
            group["lr"] = policy.learning_rate_at(step)
        policy.optimizer.step()
        if step % 20 == 0:
            print(f"step {step:4d}  loss {total:.3f}  {time.time() - start:5.0f} s", flush=True)
        if step % 200 == 0 or step == steps:
            report_accuracy(policy.model, processor)
    policy.model.to(torch.bfloat16).save_pretrained(out)      # half the download; runs load it as fp32
    print(f"saved to {out} after {time.time() - start:.0f} s")


def report_accuracy(model, processor: Processor, n: int = 64) -> None:
    """Accuracies of a checkpoint, T = 1, and what stage 2 makes of the hard family."""
    engine, verifier, seed_key = HFEngine(model, processor), ToyVerifier(), ("probe",)
    for family in ("ordinary", "shortcut", "balanced", "hard"):
        queries = [make_query(family, i, "probe", "half") for i in range(n)]
        rollouts = [Rollout(query, processor.prompt(query), query.id) for query in queries]
        sample(engine, rollouts, 1, seed_key)
        verdicts = [verifier.judge_one(r.query, r.samples_G[0].text) for r in rollouts]
        right = np.mean([boxed_answer(r.samples_G[0].text) == r.query.answer for r in rollouts])
        line = f"  {family:9s} answer {right:.2f}  process {np.mean([v.correct for v in verdicts]):.2f}"
        bad = [(r, v.report) for r, v in zip(rollouts, verdicts, strict=True) if not v.correct]
        if bad:
            wrong = [r for r, _ in bad]
            resample(engine, wrong, [[retry_message(report, RETRY_PROMPT)] for _, report in bad], seed_key)
            texts = [r.retries_G[0].text for r in wrong]
            again = [verifier.judge_one(r.query, text).correct for r, text in zip(wrong, texts, strict=True)]
            kept = [ok and is_independent(text) for ok, text in zip(again, texts, strict=True)]
            line += f"  stage 2: correct {np.mean(again):.2f}  kept {np.mean(kept):.2f} of {len(bad)}"
            line += f"   e.g. {wrong[0].samples_G[0].text!r} | {bad[0][1]!r} | {texts[0]!r}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m toy.warm_start", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("toy/checkpoint"))
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warm_start(args.out, args.steps, args.seed)


if __name__ == "__main__":
    main()
