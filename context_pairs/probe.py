"""Context pairs: is the right context chosen, and does its place matter?

    python -m context_pairs.probe --model M [--pairs FILE] [--out FILE.json]
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from context_pairs.pairs import as_query, load_pairs, turned, usable
from data import DataError, Processor
from policy import Policy, choice
from tools.numbers import bootstrap_interval


def probe(policy, pairs: list, batch_size: int = 16) -> list[dict]:
    """Every pair in both orders (one whose order is fixed in that one): a record of the margin between the right
    letter and the wrong one, and of the letter chosen.  No sampling: the two letters' log-probs are compared."""
    from context_pairs.pairs import as_query, turned
    from policy import choice

    import torch

    asked = [p for pair in pairs for p in ([pair] if pair.kind == "prompt" else [pair, turned(pair)])]
    ids, records = policy.processor.option_ids(), []
    for start in tqdm(range(0, len(asked), batch_size), desc="probe", leave=False, disable=None):
        part = asked[start:start + batch_size]
        rows = [choice(policy.processor.prompt(as_query(pair)), ids[pair.letter], ids[turned(pair).letter])
                for pair in part]
        with torch.no_grad():
            right, wrong = policy.margins(rows)
        for pair, margin in zip(part, (right - wrong).tolist(), strict=True):
            records.append({"id": pair.id, "letter": pair.letter, "margin": margin,
                            "chosen": (pair if margin > 0 else turned(pair)).letter})
    return records


def selection(records: list[dict]) -> dict:
    """Accuracy with a 95 % interval over pairs, the same for each place of the right context, and position bias: half
    the difference of the two, so that letters need not be balanced."""
    by_pair: dict[str, list] = {}
    for record in records:
        by_pair.setdefault(record["id"], []).append(record["letter"] == record["chosen"])
    places = {letter: [r["chosen"] == letter for r in records if r["letter"] == letter] for letter in "AB"}
    both = [orders for orders in by_pair.values() if len(orders) == 2]
    return {"pairs": len(by_pair), "pairs_in_both_orders": len(both),
            "accuracy": float(np.mean([np.mean(orders) for orders in by_pair.values()])),
            "interval": interval(list(by_pair.values())),
            **{f"accuracy_{letter}": float(np.mean(hits)) if hits else None for letter, hits in places.items()},
            "right_in_both_orders": float(np.mean([all(orders) for orders in both])) if both else None,
            "bias": float(np.mean(places["A"]) - np.mean(places["B"])) / 2 if all(places.values()) else None,
            "margin": float(np.mean([r["margin"] for r in records]))}


def run_probe(argv: list[str]) -> None:
    from transformers.utils import logging

    parser = argparse.ArgumentParser(prog="eval.py probe", description="Selection accuracy on context pairs.")
    parser.add_argument("--model", default="assets/toy")
    parser.add_argument("--pairs", default="toy", help="as pairs.py reads them; default: the built-in world's held-out")
    parser.add_argument("--max_pixels", type=int, default=3_000_000)
    parser.add_argument("--max_context", type=int, default=32768, help="longest text of a pair, in tokens")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers and one record per question")
    args = parser.parse_args(argv)
    if min(args.batch_size, args.max_pixels, args.max_context) < 1:
        raise DataError("--batch_size, --max_pixels and --max_context must be at least 1")
    if args.out and args.out.is_dir():
        raise DataError(f"--out {args.out} is a folder")
    import toy
    from context_pairs.pairs import load_pairs, usable
    from policy import Policy

    logging.disable_progress_bar()
    pairs = toy.heldout_pairs() if args.pairs == "toy" else load_pairs(args.pairs)
    try:
        policy = Policy(args.model, Processor(args.model, args.max_pixels), reference=False, device=device())
    except (OSError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise DataError(f"cannot load model {args.model}: {(str(error).splitlines() or [''])[0]}") from None
    records = probe(policy, usable(pairs, policy.processor, args.max_context), args.batch_size)
    found = selection(records)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found | {"model": args.model, "records": records}, indent=2))
    low, high = found["interval"]

    def show(name: str) -> str:
        return "–" if found[name] is None else f"{found[name]:.3f}"
    print(f"selection accuracy {found['accuracy']:.3f}  [{low:.3f}, {high:.3f}]  ({found['pairs']} pairs, "
          f"{found['pairs_in_both_orders']} of them in both orders; chance 0.5)\n"
          f"  right context is A {show('accuracy_A')}, is B {show('accuracy_B')}; right in both orders "
          f"{show('right_in_both_orders')} (chance 0.25)\n"
          f"  position bias {'–' if found['bias'] is None else format(found['bias'], '+.3f')} (+0.5: always A, -0.5: "
          f"always B); mean margin {found['margin']:+.2f}")


if __name__ == "__main__":
    run_probe()
