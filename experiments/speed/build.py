"""How fast recipe.build reads, and how its memory grows: candidates per second on one core, peak memory.

    python -m experiments.speed.build [--rows 1000]         rows and 10 times the rows; about four minutes

Rows are typed as FineVision's, with drawings of 640 x 480 pixels and solutions of 100 words.  The two stages
of models are passed through: their speed is that of the models.
"""

import argparse
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

from recipe import build, candidates
from recipe.duplicates import hash_of_text
from recipe.finevision import finevision_turns
from toy import COLOURS
from toy.sample import write_subset


def make_data(folder: Path, rows: int) -> None:
    rng = random.Random(0)
    for part in range(0, rows, 1000):
        made = []
        for i in range(part, min(part + 1000, rows)):
            picture = Image.new("RGB", (640, 480), "white")
            pen = ImageDraw.Draw(picture)
            for _ in range(6):
                x, y, r = rng.randrange(640), rng.randrange(480), rng.randrange(20, 150)
                pen.ellipse([x - r, y - r, x + r, y + r], outline="black",
                            fill=rng.choice(list(COLOURS.values())))
            file = io.BytesIO()
            picture.save(file, "JPEG" if i % 2 else "PNG")
            words = ["the", "angle", "of", "a", "side", "plus", "3", "equals", "radius", ",", "so"]
            text = " ".join(rng.choice(words) for _ in range(100))
            user = ("<image>Hint: Please answer it.\n"
                    f"Question: What is number {i} of {rng.random()} ?\nChoices:")
            made.append({"images": [{"bytes": file.getvalue(), "path": None}], "facts": [], "ratings": [5],
                         "texts": [{"user": f"{user}\n(A) 12 m\n(B) 30 m",
                                    "assistant": f"{text}. It is 30 m. The answer is B."}]})
        write_subset(folder / f"part{part:06d}", made)


def pass_through(args):
    return lambda batch: [row | {"solved": hash_of_text(row["id"]) % 4} for row in batch]


def measure(folder: Path, out: Path) -> None:
    """In a process of its own, for its peak of memory; the last line on stderr is JSON."""
    build.STAGES |= {"04-answers": pass_through, "05-references": pass_through}
    build.settings_of = lambda args: {}
    seconds, run = {}, build.run_stage

    def timed(name, *more):
        start = time.monotonic()
        run(name, *more)
        seconds[name] = time.monotonic() - start
    build.run_stage = timed
    start = time.monotonic()
    build.main([str(out), "--finevision", str(folder), "--policy", "-", "--verifier", "-"])
    total = time.monotonic() - start
    del candidates.STEPS["picture"]
    start = time.monotonic()
    turns = 0
    for _, turn in finevision_turns(str(folder)):
        candidates.clean_batch([turn], argparse.Namespace(verifier="-", min_words=30, out=out))
        turns += 1
    text = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": turns, "MiB": peak, "total": total, "text": text, **seconds}), file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.speed.build", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return measure(*args.child)
    peaks = []
    for rows in (args.rows, 10 * args.rows):
        with tempfile.TemporaryDirectory() as folder:
            make_data(Path(folder) / "data", rows)
            command = [sys.executable, "-m", "experiments.speed.build", "--child", f"{folder}/data",
                       f"{folder}/out"]
            done = subprocess.run(command, check=True, capture_output=True, text=True,
                                  env=os.environ | {"OMP_NUM_THREADS": "1"})
        found = json.loads(done.stderr.splitlines()[-1])
        peaks.append(found["MiB"])
        rates = {"read, text only": found["text"], "read, with picture": found["01-read"],
                 "unique": found["02-unique"], "benchmarks": found["03-benchmarks"],
                 "balance": found["06-balance"], "all": found["total"]}
        print(f"{rows} rows: peak {found['MiB']:.0f} MiB; rows/s: " + ", ".join(
            f"{name} {found['rows'] / seconds:.0f}" for name, seconds in rates.items()), flush=True)
    print(f"10 times the rows, {peaks[1] / peaks[0]:.2f} times the memory")


if __name__ == "__main__":
    main()
