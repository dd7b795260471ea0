"""Rollouts as numbers (metrics of a step) and as rows of rollouts.jsonl, which can be trained again."""

import json
from pathlib import Path

import torch

import grpo
from data import DataError, Processor, Query, json_lines, save_image, short
from judges.rule import answers_match
from policy import all_sum
from reward import Verdict, VerdictStatus, VerifierLike
from sampler import Rollout, Sample, SampleStatus


def statistics(rollouts: list[Rollout]) -> dict[str, float | None]:
    """Metrics of one step's samples, over all ranks.  A share of nothing is None, not 0."""
    sums = dict.fromkeys(("queries", "hard", "recovered", "samples", "truncated", "too_long", "tokens",
                          "reports", "leaked", "verdicts", "failed_verdicts", "reward", "answer_right",
                          "answer_right_judged_wrong", "retries", "retry_tokens", "retries_correct",
                          "retries_dependent"), 0.0)
    sums |= {kind.value: 0.0 for kind in grpo.GroupKind}
    for r in rollouts:
        sums["queries"] += 1
        sums["hard"] += r.hard
        sums["recovered"] += r.group.kind is grpo.GroupKind.MIXED
        sums[r.group.kind.value] += 1
        for sample, verdict in zip(r.samples_G, r.verdicts_G, strict=True):
            sums["samples"] += 1
            sums["truncated"] += sample.status is SampleStatus.TRUNCATED
            sums["too_long"] += sample.status is SampleStatus.TOO_LONG
            sums["tokens"] += len(sample.ids)
            sums["reports"] += bool(verdict.report)
            sums["leaked"] += verdict.leaked
            if verdict.status is VerdictStatus.FAILED:
                continue
            right = answers_match(r.query, sample.text)
            sums["verdicts"] += 1
            sums["reward"] += verdict.reward
            sums["answer_right"] += right
            sums["answer_right_judged_wrong"] += right and not verdict.correct
        for retry, verdict, kept in zip(r.retries_G, r.retry_verdicts_G, r.kept_G, strict=True):
            sums["retries"] += 1
            sums["retry_tokens"] += len(retry.ids)
            sums["too_long"] += retry.status is SampleStatus.TOO_LONG
            sums["retries_correct"] += verdict.correct
            sums["retries_dependent"] += verdict.correct and not kept
        sums["failed_verdicts"] += sum(v.status is VerdictStatus.FAILED
                                       for v in [*r.verdicts_G, *r.retry_verdicts_G])
    s = dict(zip(sums, all_sum(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()))

    def share(part: str, whole: str) -> float | None:
        return s[part] / s[whole] if s[whole] else None

    return {"reward": share("reward", "verdicts"), "hard_share": share("hard", "queries"),
            "recovered_share": share("recovered", "hard"),
            **{f"groups/{kind.value}": s[kind.value] for kind in grpo.GroupKind},
            "false_positive_share": share("answer_right_judged_wrong", "answer_right"),
            "retries": s["retries"], "retries_correct_share": share("retries_correct", "retries"),
            "retries_dependent": s["retries_dependent"], "reports": s["reports"],
            "leaked_reports": s["leaked"],
            "failed_verdicts": s["failed_verdicts"], "truncated_share": share("truncated", "samples"),
            "too_long": s["too_long"],
            "response_length": share("tokens", "samples"), "tokens_sampled": s["tokens"] + s["retry_tokens"]}


# ------------------------------------------------------------------------------------------ record and replay

def judge_metrics(verifier: VerifierLike | None) -> dict[str, float]:
    """Calls, tokens, seconds and failures of the judge since the last step, over all ranks."""
    counts = verifier.metrics() if verifier else {}
    return dict(zip(counts, all_sum(torch.tensor(list(counts.values()), dtype=torch.float64)).tolist()))


def rollout_row(r: Rollout, step: int, folder: Path) -> dict:
    """One row of rollouts.jsonl.  Ids and log-probs are complete: a step can be trained again from it."""
    def member(sample: Sample, verdict: Verdict) -> dict:
        return {"text": sample.text, "status": sample.status.value, "verdict": verdict.status.value,
                "correct": verdict.correct, "consistent": verdict.consistent, "report": verdict.report,
                "analysis": verdict.analysis, "error": verdict.error, "leaked": verdict.leaked,
                "answer_right": answers_match(r.query, sample.text),
                "ids": sample.ids, "logprobs": sample.logprobs,
                **({} if verdict.value is None else {"value": verdict.value})}

    trained = iter(r.group.members)          # stage 1 without failed verdicts, then the kept retries
    stage1 = [member(s, v) | {"advantage": next(trained).advantage if v.reward is not None else None}
              for s, v in zip(r.samples_G, r.verdicts_G, strict=True)]
    stage2 = [member(s, v) | {"kept": kept, "advantage": next(trained).advantage if kept else None}
              for s, v, kept in zip(r.retries_G, r.retry_verdicts_G, r.kept_G, strict=True)]
    images = [save_image(image, folder / "images", f"{r.query.id}-{i}")
              for i, image in enumerate(r.query.images)]
    return {"step": step, "query": r.query.id, "family": r.query.family, "question": r.query.question,
            "images": images, "solution": r.query.solution, "answer": r.query.answer,
            "kind": r.group.kind.value,
            "stage1": stage1, "stage2": stage2}


def read_rollouts(path: str, queries: set[str], steps: int) -> dict[int, list[dict]]:
    """rollouts.jsonl -> rows by step; {} without a path.  Checked whole before anything is trained: rows,
    queries, number of steps."""
    recorded: dict[int, list[dict]] = {}
    if not path:
        return recorded
    for where, line in json_lines(Path(path)):
        try:
            row = json.loads(line)
            samples_of(row), verdicts_of(row), [m["kept"] for m in row["stage2"]]
            members = row["stage1"] + row["stage2"]
            if not row["stage1"] or any(len(m["ids"]) != len(m["logprobs"]) for m in members):
                raise ValueError
            recorded.setdefault(row["step"], []).append(row)
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{where}: not a row of a recording") from None
        if row["query"] not in queries:
            raise DataError(f"{where}: query {short(str(row['query']))} is not in the training data")
    if not recorded:
        raise DataError(f"recording is empty: {path}")
    missing = [step for step in range(1, steps + 1) if step not in recorded]
    if missing:
        raise DataError(f"{path}: step {missing[0]} is not in the recording, the run wants {steps}")
    return recorded


def samples_of(row: dict) -> tuple[list[Sample], list[Sample]]:
    return tuple([Sample(m["ids"], m["logprobs"], SampleStatus(m["status"]), m["text"], stage)
                  for m in row[f"stage{stage}"]] for stage in (1, 2))


def verdicts_of(row: dict) -> tuple[list[Verdict], list[Verdict]]:
    return tuple([Verdict(VerdictStatus(m["verdict"]), m["correct"], m["consistent"], m["report"],
                          m["analysis"], m["error"], m["leaked"], m.get("value"))
                  for m in row[f"stage{stage}"]] for stage in (1, 2))


def rollout_of_row(row: dict, query: Query, processor: Processor) -> Rollout:
    """As it was recorded; its group is formed anew, so λ may differ from the recording's."""
    (samples_G, retries_G), (verdicts_G, retry_verdicts_G) = samples_of(row), verdicts_of(row)
    return Rollout(query, processor.prompt(query), query.id, samples_G, verdicts_G, retries_G,
                   retry_verdicts_G, [m["kept"] for m in row["stage2"]])
