"""Queries: images + question + FULL reference solution + final answer, and how a model is shown them.

ContextRL (arXiv 2602.22623) needs more of a data set than plain RL does: the verifier reads the whole
worked solution, not the final answer alone (paper, section 3.1).  A data file is JSONL, one query a line:

    {"id": "q17", "images": ["images/q17.png"], "question": "how many red plus blue ?",
     "solution": "red 3 ; blue 2 ; plus 5 ; \\\\boxed{5}", "answer": "5", "family": "ordinary"}

Image paths are relative to the file.  `Processor` turns a query into token ids and pixels.  Three rules
keep engine and trainer on the same input:

* an image is decoded and resized ONCE, here; the number of image tokens follows from that size alone;
* the placeholder of an image is expanded to one id per image token here, so ids are final;
* ids of a response are never decoded and encoded again: a retry prompt is made by concatenating ids.

    python data.py DATA.jsonl        reads all of it, pictures too: what is in it, and what is wrong with it

`python -m recipe.finevision` and `python -m recipe.build` make such files of data sets like FineVision.
"""

import hashlib
import io
import json
import os
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps


class DataError(ValueError):
    """Input that cannot be used; the message is one line that names the file and the row."""

    def __init__(self, message: str):
        super().__init__(short(message, 500))


def short(text: str, most: int = 80) -> str:
    """A value in a message: printable, on one line, cut in the middle."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= most else f"{text[:most // 2]}…{text[-(most // 2):]}"


@dataclass
class Query:
    """One problem.  `solution` is what makes ContextRL possible; `facts` is for verifiers that know more."""

    id: str                                        # unique within a data set: seeds and logs are keyed by it
    images: list                                   # paths (str) or encoded files (bytes), in order
    question: str                                  # the user's turn; may mark the images' places by <image>
    solution: str                                  # full reference solution, as the verifier reads it
    answer: str                                    # its final answer
    family: str = "all"                            # subset name: accuracies are reported per family
    facts: dict = field(default_factory=dict)      # more that a verifier knows; "rule": true, answer only


@dataclass
class Prompt:
    """What the policy is shown, ready for a model."""

    ids: list[int]                             # token ids, one image placeholder per image token
    positions: np.ndarray                      # [3, len(ids)] int64, M-RoPE positions (time, height, width)
    images: list                               # as in Query; pixels are made at the moment of use

    @property
    def next_position(self) -> int:
        """Position of the first response token: text goes on after the largest position so far."""
        return int(self.positions.max()) + 1


# ------------------------------------------------------------------------------------------------- data files

REQUIRED = ("id", "question", "solution", "answer")
# What Pillow raises on files that are no pictures, or only half of one.
PICTURE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, RuntimeError,
                  struct.error, Image.DecompressionBombError)
IMAGE_MARK = "<image>"                             # place of an image within a question
REPORTED = 10                                      # bad rows that are named; the others are counted


def load_queries(source: str | Path) -> list[Query]:
    """All queries of a JSONL file.  A row that cannot be used is skipped, counted and named; none left is an
    error.  Of a picture only the header is read; training/parts.py: askable() goes on from there."""
    path = Path(source)
    if os.path.isdir(path) or path.suffix == ".parquet" or (":" in str(source) and not os.path.exists(path)):
        raise DataError(f"{source} is no JSONL file: python -m recipe.finevision {source} OUT writes one")
    queries, bad = {}, []
    for where, line in json_lines(path):
        try:
            query = query_of_line(line, path.parent)
            if query.id in queries:
                raise DataError(f"id '{short(query.id)}' appears twice")
            queries[query.id] = query
        except DataError as error:
            bad.append(f"{where}: {error}")
    if not queries:
        raise DataError(f"no usable row in {source}: all {len(bad)} are bad, the first: {bad[0]}" if bad
                        else f"data file is empty: {source}")
    report_skipped(bad, f"bad rows skipped, {len(queries)} read from {source}")
    return list(queries.values())


def report_skipped(bad: list[str], summary: str) -> None:
    """Names the first bad rows on stderr and counts all, once for all ranks."""
    if bad and os.environ.get("RANK", "0") == "0":
        print(*(f"skipped {problem}" for problem in bad[:REPORTED]), f"{len(bad)} {summary}", sep="\n",
              file=sys.stderr)


def json_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """-> ("file:line", line) of every line that is not blank, without byte order marks."""
    if not (os.path.isfile(path) and os.access(path, os.R_OK)):
        raise DataError(f"data file not {'readable' if os.path.exists(path) else 'found'}: {path}")
    with open(path, "rb") as file:                                        # a line ends at \n and nowhere else
        for number, line in enumerate(file, start=1):
            if line := line.lstrip(b"\xef\xbb\xbf").strip():           # joined files have several marks
                yield f"{path}:{number}", line


def json_row(line: bytes) -> dict:
    """One line of JSONL as an object whose texts can be written again."""
    try:
        row = json.loads(line.decode("utf-8"))
        json.dumps(row, ensure_ascii=False).encode("utf-8")       # half a surrogate pair could not be written
    except UnicodeError:
        raise DataError("not UTF-8 text (a file in UTF-16 must be saved as UTF-8)") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"not a JSON object ({getattr(error, 'msg', 'too deep or too long')})") from None
    if not isinstance(row, dict):
        raise DataError("a row must be a JSON object")
    return row


def query_of_line(line: bytes, folder: Path) -> Query:
    """One row of JSONL; image paths are relative to `folder`."""
    row = json_row(line)
    unknown = set(row) - set(Query.__dataclass_fields__)
    if unknown:
        raise DataError(f"unknown field(s) {short(', '.join(sorted(unknown)))}; a row has "
                        + ", ".join(Query.__dataclass_fields__))
    row |= {name: text_of(row, name) for name in REQUIRED}
    for name, kind in (("family", str), ("facts", dict)):
        if not isinstance(row.get(name, kind()), kind):
            raise DataError(f"field '{name}' must be a {kind.__name__}")
    images = row.get("images", [])
    if not isinstance(images, list) or not all(isinstance(i, str) for i in images):
        raise DataError("'images' must be a list of paths")
    choices = row.get("facts", {}).get("choices") or {}
    if not (isinstance(choices, dict) and all(isinstance(text, str) for text in choices.values())):
        raise DataError("'choices' of the facts must be letters and their texts")
    marks = row["question"].count(IMAGE_MARK)
    if marks not in (0, len(images)):
        raise DataError(f"{len(images)} images, but {marks} marks {IMAGE_MARK} in the question")
    row["images"] = [str(folder / image) for image in images]
    for image in row["images"]:
        open_picture(image).close()
    return Query(**row)


def text_of(row: dict, name: str) -> str:
    """A field that must hold text; a number is read as its text."""
    value = row.get(name, "")
    if type(value) in (int, float) and value - value == 0:                   # neither NaN nor infinite
        return str(value)
    if not isinstance(value, str) or not value.strip():
        problem = "missing or empty" if isinstance(value, str) else f"no text: {short(json.dumps(value))}"
        raise DataError(f"field '{name}' is {problem}")
    return value


def open_picture(image: str | bytes) -> Image.Image:
    """Reads the header; pixels are decoded later, and may turn out to be broken then."""
    try:
        picture = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    except PICTURE_ERRORS as error:
        raise unreadable(image, error) from None
    if max(picture.size) > 200 * min(picture.size):                      # image processors refuse such strips
        raise DataError(f"image of {picture.width} x {picture.height} pixels is too narrow")
    return picture


def read_picture(image: str | bytes, draft: bool = False) -> Image.Image:
    """All of a picture, in RGB.  `draft`: JPEG at an eighth of its size, to check a file in less time."""
    with open_picture(image) as picture:
        try:
            picture.draft(picture.mode, (1, 1) if draft else picture.size)
            return as_seen(picture)
        except PICTURE_ERRORS as error:
            raise unreadable(image, error) from None


def unreadable(image: str | bytes, error: Exception) -> DataError:
    name = f"of {len(image)} bytes" if isinstance(image, bytes) else short(image)
    why = error if isinstance(error, DataError) else type(error).__name__
    return DataError(f"cannot read image {name} ({why})")


def save_queries(queries: list[Query], path: str | Path) -> None:
    """Writes JSONL plus `images/` beside it; in-memory images become PNG files."""
    path = Path(path)
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for query in queries:
            images = [save_image(image, path.parent / "images", f"{query.id}-{i}", replace=True)
                      for i, image in enumerate(query.images)]
            file.write(json.dumps(asdict(query) | {"images": images}, ensure_ascii=False) + "\n")


def save_image(image: str | bytes, folder: Path, name: str, replace: bool = False) -> str:
    """Copies one image into `folder` under a safe name, once -> its path relative to folder's parent."""
    safe = re.sub(r"[^\w-]", "_", name.casefold()).encode()[:100].decode(errors="ignore")
    if safe != name:        # two names may look alike now (A and a on some disks; a disk allows 255 bytes)
        safe += "-" + hashlib.sha256(name.encode()).hexdigest()[:16]
    target = folder / f"{safe}.png"
    if replace or not target.exists():
        beside = folder / f".{target.name}.{os.urandom(4).hex()}"       # a reader sees all of it or nothing
        try:
            if isinstance(image, bytes):
                beside.write_bytes(image)
            else:
                read_picture(image).save(beside, "PNG")
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    return f"{folder.name}/{target.name}"


def as_seen(picture: Image.Image) -> Image.Image:
    """RGB as people and judges see it: turned as its EXIF data say, on white where it is transparent, grey of
    up to 16 bits scaled by its full range.  A range that is not known or hardly used is refused."""
    known = picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PPM")
    tags = getattr(picture, "tag_v2", {})                     # TIFF: 258 is bits per sample, 262 "0 is white"
    picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] in "IF":                               # Pillow would cut all of these off at 255
        grey = np.asarray(picture) >> tags.get(258, [16])[0] - 8 if known else np.zeros(1)
        if grey.max() < 16:
            raise DataError("its range is not known, or hardly used: save it with 8 bits")
        picture = Image.fromarray((255 - grey if tags.get(262) == 0 else grey).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("RGB")


def batch_order(size: int, epoch: int, seed: int) -> np.ndarray:
    """Order of the data in one epoch, a pure function of (seed, epoch): resuming needs only a cursor."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def next_items(items: list, cursor: int, n: int, seed: int) -> list:
    """n items from `cursor` on in an endless stream of reshuffled epochs."""
    first, last = cursor // len(items), (cursor + n - 1) // len(items)
    orders = {epoch: batch_order(len(items), epoch, seed) for epoch in range(first, last + 1)}
    return [items[orders[i // len(items)][i % len(items)]] for i in range(cursor, cursor + n)]


def read_prompt(file: str | Path, fields: tuple[str, ...], needed: tuple[str, ...] = ()) -> str:
    """A template: plain text with named fields in braces; `needed` must be there, other braces are text."""
    try:
        template = Path(file).read_text(encoding="utf-8-sig").strip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read prompt {file} ({type(error).__name__})") from None
    missing = [name for name in needed if f"{{{name}}}" not in template]
    if missing:
        raise DataError(f"prompt {file} has no field {{{missing[0]}}}; its fields are "
                        + ", ".join(f"{{{name}}}" for name in fields))
    return template


def fill_prompt(template: str, **values: str) -> str:
    """In one pass: braces inside the values stay what they are, as do names that are not given."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


def retry_template(file: str | Path = "") -> str:
    """The second user turn of stage 2: what is said with a {report}, a line "---", what is said without."""
    file = file or Path(__file__).resolve().parent / "prompts" / "retry.txt"
    template = read_prompt(file, ("report",), ("report",))
    if template.count("\n---\n") != 1 or "{report}" not in template.split("\n---\n")[0]:
        raise DataError(f"prompt {file} needs one line '---': what is said with {{report}}, then without")
    return template


# Control and half characters.  A form feed was \frac, a backspace \beta, before JSON took it for an escape.
UNPRINTABLE = {code: " " for code in (*range(9), *range(11, 32), *range(127, 160))} | {
    code: "?" for code in range(0xD800, 0xE000)} | {ord("\b"): r"\b", ord("\f"): r"\f"}


def retry_message(report: str, template: str) -> str:
    """Without a report (none was written, or the ablation): the second part of the template."""
    with_report, without = template.split("\n---\n")
    return fill_prompt(with_report, report=report.translate(UNPRINTABLE).strip()) if report else without


# ---------------------------------------------------------------------------------- from query to model input

class Processor:
    """Tokenizer, chat template and image processor of a Qwen-VL style checkpoint folder (or hub id).
    `max_pixels` bounds the area of every image after resizing (paper, section 4.1.2: 3M pixels)."""

    def __init__(self, model: str, max_pixels: int | None = None):
        from transformers import AutoConfig, AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.source = model
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        if not self.tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template")
        # The Pillow back end on purpose: it needs no torchvision, and one back end means one set of pixels.
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(model)
        if max_pixels is not None:
            self.image_processor.size["longest_edge"] = max_pixels
        config = AutoConfig.from_pretrained(model)
        self.image_id = config.image_token_id
        special = {i: str(t) for i, t in self.tokenizer.added_tokens_decoder.items() if t.special}
        self.special_tokens = list(special.values())
        # What ends the assistant's turn is the chat template's to say: the tokenizer may name another token.
        tail = self._after_response("?")
        ends = [i for i, text in special.items() if tail.startswith(text)]
        self.eos_id = ends[0] if ends else self.tokenizer.eos_token_id
        if self.eos_id is None:
            raise ValueError("neither chat template nor tokenizer names a token that ends a response")
        self.pad_id = self.eos_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        # A policy may not sample what only the processor may write: a placeholder without an image, say.
        known, rows = len(self.tokenizer), config.text_config.vocab_size
        self.forbidden_ids = sorted({self.image_id, config.video_token_id, config.vision_start_token_id,
                                     config.vision_end_token_id, *range(known, rows)})
        if known > rows:
            raise ValueError(f"the tokenizer has {known} ids, the model's embedding {rows} rows")
        probe = self._chat([user_turn(Query("", ["image"], "?", "", ""))])
        if self.encode(probe).count(self.image_id) != 1:
            raise ValueError("tokenizer and chat template do not write one placeholder for one image")
        # A template may open the thoughts before the response begins.
        self.thought = "<think>\n" if "<think>" in probe.rpartition("?")[2].rpartition("</think>")[2] else ""
        self.picture = lru_cache(maxsize=64)(self._picture)   # a step's pictures, not an epoch's
        self.pixels = lru_cache(maxsize=64)(self._pixels)

    def check(self, query: Query) -> None:
        """Refuses text that would be read as structure: it could add image places or end a turn."""
        for token in self.special_tokens:
            if token in query.question or token in query.solution:
                raise DataError(f"query {short(query.id)}: its text contains the special token {token}")

    def size_of(self, picture: Image.Image) -> tuple[int, int]:
        """(width, height) at which the model is shown a picture: within its bounds, or DataError."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        own, most = self.image_processor, self.image_processor.size["longest_edge"]
        height, width = smart_resize(picture.height, picture.width, own.patch_size * own.merge_size,
                                     own.size["shortest_edge"], most)
        if not 0 < height * width <= most:                 # each side keeps a token, whatever that adds up to
            raise DataError(f"image of {picture.width} x {picture.height} cannot be shown in {most} pixels")
        return width, height

    def _picture(self, image: str | bytes) -> Image.Image:
        """RGB picture at its final size.  The one place that decodes and resizes: an engine with an image
        processor of its own gets this picture, because no two resize alike.  info["content"] is a hash."""
        picture = read_picture(image)
        picture = picture.resize(self.size_of(picture), self.image_processor.resample)
        picture.info = {"content": hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()}
        return picture

    def _pixels(self, image: str | bytes) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """-> (patches [t*h*w, C*T*P*P] float32, (t, h, w) in patches)."""
        out = self.image_processor(images=[self.picture(image)], do_resize=False, return_tensors="pt")
        return out["pixel_values"], tuple(out["image_grid_thw"][0].tolist())

    def pixel_batch(self, images: list) -> dict[str, torch.Tensor]:
        """Model arguments for the images of a batch, in order of appearance; {} without images."""
        if not images:
            return {}
        patches, grids = zip(*(self.pixels(image) for image in images))
        return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids)}

    def prompt(self, query: Query) -> Prompt:
        """The policy's view of a query: images and question, then the assistant's turn opens."""
        ids = self.encode(self._chat([user_turn(query)]))
        merge = self.image_processor.merge_size
        try:
            grids = [self.pixels(image)[1] for image in query.images]
        except DataError as error:
            raise DataError(f"query {short(query.id)}: {error}") from None
        if (places := ids.count(self.image_id)) != len(grids):
            raise DataError(f"query {short(query.id)}: {len(grids)} images, {places} places in the prompt")
        expanded, remaining = [], iter(grids)
        for token in ids:
            expanded += [token] * (int(np.prod(next(remaining))) // merge**2 if token == self.image_id else 1)
        return Prompt(expanded, mrope_positions(expanded, grids, self.image_id, merge), list(query.images))

    def follow_up(self, prompt: Prompt, response_ids: list[int], message: str) -> Prompt:
        """The same prompt, then the response (its own ids, untouched), then a user's turn: `message`
        without special tokens, since a judge's words could open or close turns."""
        for token in self.special_tokens:
            message = message.replace(token, " ")       # not "": what is left and right might join to another
        tail = self.encode(self._after_response(message))
        closed = bool(response_ids) and response_ids[-1] == self.eos_id == tail[0]
        added = list(response_ids) + tail[closed:]
        if self.image_id in added:
            raise DataError("an image placeholder in a response or a message: it has no image")
        more = np.broadcast_to(prompt.next_position + np.arange(len(added)), (3, len(added)))
        return Prompt(prompt.ids + added, np.concatenate([prompt.positions, more], axis=1), prompt.images)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode_response(self, text: str) -> list[int]:
        """Ids of a text as the assistant's turn, closed by EOS: for references (SFT), never for samples."""
        return self.encode(text) + [self.eos_id]

    def decode(self, ids: list[int]) -> str:
        """Text of response ids, for people and verifiers, with a <think> that the chat template wrote."""
        return self.thought + self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _after_response(self, message: str) -> str:
        """What the template writes behind an assistant's text that is followed by a user's `message`."""
        marker = "@@response@@"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker},
                 {"role": "user", "content": message}]
        return self._chat(turns).split(marker, 1)[1]

    def _chat(self, turns: list[dict]) -> str:
        """Up to where the assistant's turn opens."""
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def load_model(path: str, dtype: torch.dtype | str):
    """A vision-language model of a checkpoint folder or hub id, on the CPU."""
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation="sdpa",
                                                              output_loading_info=True)
    if info["missing_keys"]:                        # transformers would go on with random weights
        raise ValueError(f"{len(info['missing_keys'])} weights are missing: {min(info['missing_keys'])}, ...")
    return model


def user_turn(query: Query) -> dict:
    """The chat message of a query: an image part per image, at the marks of the question, else before it."""
    texts = query.question.split(IMAGE_MARK)
    if len(texts) != len(query.images) + 1:
        texts = [""] * len(query.images) + [query.question]
    parts = [part for text in texts for part in ({"type": "image"}, {"type": "text", "text": text})][1:]
    return {"role": "user", "content": [part for part in parts if part.get("text") != ""]}


def mrope_positions(ids: list[int], grids: list[tuple], image_id: int, merge: int) -> np.ndarray:
    """M-RoPE positions [3, L] of a prompt: text counts on, an image is a block of (t, h, w) coordinates.

    The text after an image goes on from its largest coordinate + 1 (tested against the model's function).

    >>> mrope_positions([7, 9, 9, 8], [(1, 2, 4)], image_id=9, merge=2).tolist()
    [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]
    """
    positions, here, i, remaining = [], 0, 0, iter(grids)
    while i < len(ids):
        if ids[i] != image_id:
            positions.append(np.full((3, 1), here))
            here, i = here + 1, i + 1
            continue
        t, h, w = next(remaining)
        h, w = h // merge, w // merge
        positions.append(here + np.indices((t, h, w)).reshape(3, -1))
        here, i = here + max(h, w), i + t * h * w
    return np.concatenate(positions, axis=1)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python data.py DATA.jsonl")
    try:
        queries = load_queries(sys.argv[1])
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    broken = 0
    for query in queries:
        try:
            if token := re.search(r"<\|(im|vi|endof)\w+\|>", query.question + query.solution):
                raise DataError(f"its text contains the special token {token[0]}")           # of Qwen models
            for image in query.images:
                read_picture(image)
        except DataError as error:
            broken += 1
            print(f"query {short(query.id)}: {error}", file=sys.stderr)
    print(f"{len(queries)} queries, {sum(len(query.images) for query in queries)} images")
    for name, count in sorted(Counter(query.family for query in queries).items()):
        print(f"  {short(name):16s} {count}")
    sys.exit(2 if broken else 0)


if __name__ == "__main__":
    main()
