"""The built-in world as data files.

    python -m toy show [--n 8]                             prints questions and reference solutions
    python -m toy data DIR [--references half|canonical]   writes queries and context pairs as JSONL files
    python -m toy finevision DIR [--size 24]               writes a small data set in the shape of FineVision
"""

import argparse
import sys
from pathlib import Path

from context_pairs.pairs import save_pairs
from data import save_queries
from toy.sample import finevision_sample
from toy.world import heldout_pairs, heldout_queries, make_query, train_pairs, train_queries


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m toy", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show")
    show.add_argument("--n", type=int, default=8)
    data = commands.add_parser("data")
    data.add_argument("folder", type=Path)
    data.add_argument("--references", choices=("half", "canonical"), default="half")
    sample = commands.add_parser("finevision")
    sample.add_argument("folder", type=Path)
    sample.add_argument("--size", type=int, default=24)
    args = parser.parse_args()
    try:
        run(args)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(args: argparse.Namespace) -> None:
    if args.command == "finevision":
        finevision_sample(args.folder, args.size)
        print(f"wrote {', '.join(sorted(f.name for f in args.folder.iterdir()))} to {args.folder}")
    elif args.command == "data":
        save_queries(train_queries(references=args.references), args.folder / "train.jsonl")
        save_queries(heldout_queries(), args.folder / "heldout.jsonl")
        save_pairs(train_pairs(212), args.folder / "pairs.jsonl")         # 15 % of queries and pairs together
        save_pairs(heldout_pairs(), args.folder / "heldout_pairs.jsonl")
        print(f"wrote train, heldout, pairs and heldout_pairs (.jsonl) to {args.folder}")
    else:
        for family in ("ordinary", "shortcut", "balanced", "hard"):
            for i in range(args.n // 4):
                query = make_query(family, i, "train", "half")
                print(f"{family:9s} {query.question:45s} -> {query.solution}")


if __name__ == "__main__":
    main()
