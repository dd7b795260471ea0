"""Measures a policy on held-out queries: answers, reasoning, and the gap between the two.

    answer accuracy         the final answer matches (rule check)
    process accuracy        the verifier, with the full solution, finds the reasoning right as well
    false-positive share    of the responses with the right answer, those whose reasoning is wrong: what an
                            answer-only reward would have paid for

    python eval.py [--model RUN/checkpoints/step-000120] [--data held.jsonl --verifier WHO] [--greedy]

WHO is what contextrl.py's --verifier takes.  The benchmarks of the paper: python -m benchmarks.run.
"""

import argparse

from tqdm import tqdm

from data import Processor, Query
from reward import VerdictStatus, VerifierLike
from sampler import Engine, Request, SampleStatus, on_leader, seed_of


def evaluate_queries(engine: Engine, processor: Processor, queries: list[Query], verifier: VerifierLike,
                     rule: VerifierLike, temperature: float, seed_key: tuple, quiet: bool = True,
                     ) -> list[dict]:
    """One sample for each query of this rank's share, judged twice: by `verifier` (answer and reasoning) and
    by `rule` (the answer alone).  -> one record each."""
    mine, records = queries[engine.replica::engine.replicas], []
    for start in tqdm(range(0, len(mine), 256), desc="evaluate", leave=False, disable=quiet):
        part = mine[start:start + 256]
        requests = [Request(processor.prompt(q), [seed_of(*seed_key, q.id)]) for q in part]
        samples = [drawn for drawn, in engine.generate(requests, temperature)]
        texts = [s.text for s in samples]
        verdicts = on_leader(engine, lambda part=part, texts=texts: verifier.judge(part, texts))
        answers = rule.judge(part, texts)
        for query, sample, verdict, answer in zip(part, samples, verdicts, answers, strict=True):
            records.append({"id": query.id, "family": query.family, "text": sample.text,
                            "answer": answer.correct, "process": verdict.correct,
                            "failed": verdict.status is VerdictStatus.FAILED,
                            "truncated": sample.status is SampleStatus.TRUNCATED, "tokens": len(sample.ids)})
    return records


def accuracies(records: list[dict]) -> dict:
    """Shares over one set of records; a record whose judge failed counts in none of them."""
    judged = [r for r in records if not r["failed"]]
    right = [r for r in judged if r["answer"]]
    wrong_process = [r for r in right if not r["process"]]
    return {"process_accuracy": sum(r["process"] for r in judged) / max(len(judged), 1),
            "answer_accuracy": len(right) / max(len(judged), 1),
            "false_positive_share": len(wrong_process) / max(len(right), 1)}


def summarise(records: list[dict], overall: set[str] | None = None) -> dict:
    """-> the three accuracies overall (over the families of `overall`, None: all) and per family."""
    families = sorted({r["family"] for r in records})
    chosen = [r for r in records if overall is None or r["family"] in overall]
    return {**accuracies(chosen), "queries": len(records),
            "failed_verdicts": sum(r["failed"] for r in records),
            "truncated_share": sum(r["truncated"] for r in records) / max(len(records), 1),
            "families": {f: accuracies([r for r in records if r["family"] == f]) for f in families}}


def table(columns: dict[str, dict]) -> str:
    """Summaries side by side, one line per family: answer / process accuracy."""
    families = ["all", *next(iter(columns.values()))["families"]]
    lines = [" " * 14 + "".join(f"{name:>24s}" for name in columns),
             "family".ljust(14) + f"{'answer  process   FP':>24s}" * len(columns)]
    for family in families:
        line = family.ljust(14)
        for summary in columns.values():
            s = summary if family == "all" else summary["families"][family]
            line += "{answer_accuracy:>10.2f}{process_accuracy:>9.2f}{false_positive_share:>5.2f}".format(**s)
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                     epilog="Model, data and verifier are the built-in world's by default.")
    parser.add_argument("--model", default="", help="checkpoint folder or hub id")
    parser.add_argument("--data", default="", help="JSONL of held-out queries")
    parser.add_argument("--verifier", default="", help="who judges, as for contextrl.py")
    parser.add_argument("--judge_model", default="", help="its name at the URL; default: the only one served")
    parser.add_argument("--judge_prompt", default="", help="file with a template of yours for the judge")
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_new_tokens", type=int, default=32)
    args = parser.parse_args()
    from tools.programs import one_line_errors
    from training import parts

    with one_line_errors():
        queries = parts.load_heldout(args.data)
        verifier = parts.open_verifier(args.verifier, "solution", queries, args.judge_model,
                                       prompt_file=args.judge_prompt)
        engine = parts.open_engine(args.model, args.engine, max_new_tokens=args.max_new_tokens,
                                   max_context=args.max_new_tokens + 4000)
        queries = parts.askable(queries, engine.processor)
        parts.start_judge(verifier, engine)
        records = evaluate_queries(engine, engine.processor, queries, verifier, parts.RULE,
                                   0.0 if args.greedy else 1.0, (args.seed, "evaluation"), quiet=False)
        print(table({args.model or "start": summarise(records, parts.counted_families(queries))}))


if __name__ == "__main__":
    main()
