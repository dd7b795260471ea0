"""The table of benchmarks, or a check of local files: columns, rows, groups; shows a first prompt.

    python -m benchmarks
    python -m benchmarks DIR [NAME ...]
"""

import argparse

from benchmarks.items import image_of, load_items, load_rows
from benchmarks.table import BENCHMARKS, benchmarks_named
from tools.programs import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n\n")[0])
    parser.add_argument("data_dir", nargs="?", help="has <benchmark>*.parquet or .jsonl; none: the table")
    parser.add_argument("names", nargs="*", help="default: all eleven")
    args = parser.parse_args()
    with one_line_errors():
        if not args.data_dir:
            for b in BENCHMARKS.values():
                print(f"{b.name:20s}{b.rows:>6d} rows  {b.hub[0]:45s}{b.headline:20s}{b.licence}")
            return
        for benchmark in benchmarks_named(args.names or BENCHMARKS):
            rows = load_rows(benchmark, args.data_dir)
            items = load_items(benchmark, rows, limit=len(rows))
            size, units = len(image_of(benchmark, rows, items[0])), len({item.unit for item in items})
            print(f"== {benchmark.title}: {len(items)} of {benchmark.rows} rows, {units} units; "
                  f"the first picture has {size} bytes\n{items[0].prompt}\n")


if __name__ == "__main__":
    main()
