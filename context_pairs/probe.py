"""Selection accuracy on context pairs: is the right context chosen, and does its place matter?

    python -m context_pairs.probe [--model M] [--pairs FILE] [--out FILE.json]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from context_pairs.loss import letter_row, margins, option_ids
from context_pairs.pairs import ContextPair, drop_unaskable, query_of_pair, swap_options
from data import DataError
from policy import Policy
from tools.files import write_whole
from tools.numbers import bootstrap_interval
from tools.programs import one_line_errors


def probe_pairs(policy: Policy, pairs: list[ContextPair], batch_size: int = 16) -> list[dict]:
    """Every pair in both orders (one whose order is fixed in that one): a record of the margin between the
    right letter and the wrong one, and of the letter chosen.  No sampling: the two letters' log-probs are
    compared."""
    ordered = [p for pair in pairs for p in ([pair] if pair.kind == "prompt" else [pair, swap_options(pair)])]
    ids, records = option_ids(policy.processor), []
    for start in tqdm(range(0, len(ordered), batch_size), desc="probe", leave=False, disable=None):
        part = ordered[start:start + batch_size]
        rows = [letter_row(policy.processor.prompt(query_of_pair(pair)), ids[pair.letter],
                           ids[swap_options(pair).letter]) for pair in part]
        with torch.no_grad():
            right_N, wrong_N = margins(policy, rows)
        for pair, margin in zip(part, (right_N - wrong_N).tolist(), strict=True):
            records.append({"id": pair.id, "letter": pair.letter, "margin": margin,
                            "chosen": (pair if margin > 0 else swap_options(pair)).letter})
    return records


def selection_accuracy(records: list[dict]) -> dict:
    """Accuracy with a 95 % interval over pairs, the same for each place of the right context, and position
    bias: half the difference of the two, so that letters need not be balanced."""
    by_pair: dict[str, list] = {}
    for record in records:
        by_pair.setdefault(record["id"], []).append(record["letter"] == record["chosen"])
    places = {letter: [r["chosen"] == letter for r in records if r["letter"] == letter] for letter in "AB"}
    both = [orders for orders in by_pair.values() if len(orders) == 2]
    return {"pairs": len(by_pair), "pairs_in_both_orders": len(both),
            "accuracy": float(np.mean([np.mean(orders) for orders in by_pair.values()])),
            "interval": bootstrap_interval(list(by_pair.values())),
            **{f"accuracy_{letter}": float(np.mean(hits)) if hits else None
               for letter, hits in places.items()},
            "right_in_both_orders": float(np.mean([all(orders) for orders in both])) if both else None,
            "bias": float(np.mean(places["A"]) - np.mean(places["B"])) / 2 if all(places.values()) else None,
            "margin": float(np.mean([r["margin"] for r in records]))}


def summary_text(found: dict) -> str:
    def number(name: str, form: str = ".3f") -> str:
        return "–" if found[name] is None else format(found[name], form)

    low, high = found["interval"]
    return (f"selection accuracy {found['accuracy']:.3f}  [{low:.3f}, {high:.3f}]  ({found['pairs']} pairs, "
            f"{found['pairs_in_both_orders']} of them in both orders; chance 0.5)\n"
            f"  right context is A {number('accuracy_A')}, is B {number('accuracy_B')}; right in both orders "
            f"{number('right_in_both_orders')} (chance 0.25)\n"
            f"  position bias {number('bias', '+.3f')} (+0.5: always A, -0.5: always B); mean margin "
            f"{number('margin', '+.2f')}")


def main() -> None:
    parser = argparse.ArgumentParser("python -m context_pairs.probe", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="checkpoint folder or hub id; default: the built-in one")
    parser.add_argument("--pairs", default="", help="as pairs.py reads them; default: built-in ones")
    parser.add_argument("--max_pixels", type=int, default=3_000_000)
    parser.add_argument("--max_context", type=int, default=32768, help="longest text of a pair, in tokens")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers and one record per question")
    args = parser.parse_args()
    from training import parts

    with one_line_errors():
        if min(args.batch_size, args.max_pixels, args.max_context) < 1:
            raise DataError("--batch_size, --max_pixels and --max_context must be at least 1")
        if args.out and args.out.is_dir():
            raise DataError(f"--out {args.out} is a folder")
        pairs = parts.load_heldout_pairs(args.pairs)
        processor = parts.load_processor(args.model, args.max_pixels)
        path, device = parts.model_path(args.model), "cuda" if torch.cuda.is_available() else "cpu"
        with parts.loading(f"model {path}"):
            policy = Policy(path, processor, reference=False, device=device)
        records = probe_pairs(policy, drop_unaskable(pairs, processor, args.max_context), args.batch_size)
        found = selection_accuracy(records)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_whole(args.out, json.dumps(found | {"model": path, "records": records}, indent=2))
        print(summary_text(found))


if __name__ == "__main__":
    main()
