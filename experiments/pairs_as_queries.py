"""The control of arXiv 2606.17053: context pairs as ordinary queries, sampled and rewarded, without the
auxiliary loss.

    python -m experiments.pairs_as_queries PAIRS.jsonl OUT.jsonl --with TRAIN.jsonl
    python contextrl.py --method grpo --data OUT.jsonl ...

OUT holds the training queries and then every pair as a query, whose reference is the right letter.  A pair's
facts are {"rule": true}: it is judged by its letter, the others by --verifier. """

import argparse
from pathlib import Path

from context_pairs.pairs import load_pairs, query_of_pair
from data import load_queries, save_queries
from tools.programs import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser("python -m experiments.pairs_as_queries", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="a file, folder or hub id, as context_pairs/pairs.py reads them")
    parser.add_argument("out", type=Path)
    parser.add_argument("--with", dest="train", metavar="TRAIN.jsonl", required=True,
                        help="the training queries")
    parser.add_argument("--seed", type=int, default=0, help="deals which option is the right one")
    args = parser.parse_args()
    with one_line_errors():
        queries, pairs = load_queries(args.train), load_pairs(args.pairs, args.seed)
        save_queries([*queries, *map(query_of_pair, pairs)], args.out)
        print(f"wrote {len(queries)} queries and {len(pairs)} pairs to {args.out}")


if __name__ == "__main__":
    main()
