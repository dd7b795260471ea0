"""data.py: files that can be read back and refused,
prompts that are what the model and its chat template expect.

Guards against: positions or placeholders that differ from the model's own, responses that are encoded again,
one query's picture under another's name, rows that are read wrongly instead of refused.
"""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ALONE, ROOT, response_logprobs
from PIL import Image

from data import DataError, Processor, Query, as_seen, batch_order, load_queries, save_queries
from training.checkpoint import save_processor


def row(**changes) -> dict:
    return {"id": "a", "images": [], "question": "how many ?", "solution": "red 3", "answer": "3", **changes}


def write(folder, *lines) -> str:
    file = folder / "data.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines),
                    encoding="utf-8")
    return file


# ------------------------------------------------------------------------------------------------ prompts

LAYOUTS = {"no image": [], "one": [(96, 96)], "one, odd": [(70, 131)], "two sizes": [(96, 64), (37, 200)],
           "three": [(64, 64), (160, 32), (33, 33)]}


@pytest.mark.parametrize("sizes", LAYOUTS.values(), ids=LAYOUTS)
def test_positions_are_the_models_own(policy, processor, prompt_of, sizes):
    prompt = prompt_of("how many red plus blue ?", *sizes)
    ids = torch.tensor([prompt.ids])
    grids = torch.tensor([processor.pixels(image)[1] for image in prompt.images]) if sizes else None
    types = (ids == processor.image_id).int()
    expected, delta = policy.model.model.get_rope_index(ids, types, grids)
    np.testing.assert_array_equal(prompt.positions, expected[:, 0])
    assert prompt.next_position == len(prompt.ids) + delta.item()  # where generate() puts the first new token

    # The same prompt cut right behind its last image token: the next position follows from the image's block.
    if sizes:
        end = len(prompt.ids) - prompt.ids[::-1].index(processor.image_id)
        short, delta = policy.model.model.get_rope_index(ids[:, :end], types[:, :end], grids)
        np.testing.assert_array_equal(prompt.positions[:, :end], short[:, 0])
        assert prompt.positions[0, end] == end + delta.item()


@pytest.mark.parametrize("size", [(33, 33), (70, 131), (131, 70), (300, 41), (97, 255)])
def test_one_placeholder_for_each_image_feature(policy, processor, prompt_of, size):
    prompt = prompt_of("?", size)
    batch = processor.pixel_batch(prompt.images)
    features = policy.model.model.get_image_features(batch["pixel_values"],
                                                     batch["image_grid_thw"]).pooler_output
    assert prompt.ids.count(processor.image_id) == sum(len(f) for f in features)


def test_a_picture_is_resized_once(checkpoint, picture):
    """picture() is what an engine with an image processor of its own gets: resized there again,
    it stays the same."""
    processor = Processor(checkpoint, max_pixels=96 * 96)
    for size in [(96, 96), (300, 211), (13, 10), (70, 131), (250, 31), (31, 280)]:
        with Image.open(io.BytesIO(picture(*size))) as file:
            expected = processor.image_processor(images=[file], return_tensors="pt")
        shown = processor.picture(picture(*size))
        patches, (_, h, w) = processor.pixels(picture(*size))
        assert torch.equal(patches, expected["pixel_values"]) and shown.size == (16 * w, 16 * h)
        assert list(shown.info) == ["content"] and not shown.getexif()
    assert processor.picture(picture(96, 96)).size == (96, 96)


def test_a_saved_processor_is_the_same_one(checkpoint, tmp_path):
    """Whatever file another program reads first, it finds the same image bounds;
    the video settings go along."""
    source, folder = tmp_path / "source", tmp_path / "saved"
    save_processor(Processor(checkpoint), source)
    shutil.copy(f"{checkpoint}/config.json", source)
    bounds = {"image_processor": {"size": {"shortest_edge": 1024, "longest_edge": 3_000_000}},
              "processor_class": "Qwen3VLProcessor"}
    (source / "processor_config.json").write_text(json.dumps(bounds))
    save_processor(Processor(str(source), max_pixels=96 * 96), folder)
    saved = json.loads((folder / "processor_config.json").read_text())
    assert saved["image_processor"]["size"]["longest_edge"] == 96 * 96 and saved["processor_class"]
    name = "video_preprocessor_config.json"
    assert json.loads((folder / name).read_text()) == json.loads((Path(checkpoint) / name).read_text())
    shutil.copy(f"{checkpoint}/config.json", folder)
    assert Processor(str(folder)).image_processor.size["longest_edge"] == 96 * 96


def test_max_pixels_bounds_the_number_of_image_tokens(checkpoint, picture):
    query = Query("q", [picture(300, 200)], "?", "-", "-")
    free, bound = Processor(checkpoint), Processor(checkpoint, max_pixels=96 * 96)
    # 288 x 192 pixels, 32 x 32 of them a token: 9 x 6
    assert free.prompt(query).ids.count(free.image_id) == 54
    # At most 9216 pixels: the side lengths shrink by sqrt(60000 / 9216) = 2.55 to 117 x 78, cut to 96 x 64:
    # 3 x 2
    assert bound.prompt(query).ids.count(bound.image_id) == 6


@pytest.mark.parametrize("closed", [True, False], ids=["ended with EOS", "truncated"])
def test_follow_up_is_the_chat_templates_own_conversation(policy, processor, prompt_of, closed):
    prompt = prompt_of("how many red plus blue ?", (96, 64))
    text = "red 3 ; blue 2 ; plus 6 ; \\boxed{6}"
    message = "Your answer is wrong . Solve it again from the start ."
    response = processor.encode_response(text)[:None if closed else -1]
    after = processor.follow_up(prompt, response, message)
    question = [{"type": "image"}, {"type": "text", "text": "how many red plus blue ?"}]
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text},
             {"role": "user", "content": message}]
    chat = processor.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    chat = chat.replace("<|image_pad|>", "<|image_pad|>" * 6)        # 96 x 64 pixels: 3 x 2 image tokens
    assert after.ids == processor.tokenizer(chat, add_special_tokens=False)["input_ids"]
    types = (torch.tensor([after.ids]) == processor.image_id).int()
    grids = torch.tensor([processor.pixels(prompt.images[0])[1]])
    expected = policy.model.model.get_rope_index(torch.tensor([after.ids]), types, grids)[0]
    np.testing.assert_array_equal(after.positions, expected[:, 0])


def test_follow_up_leaves_response_ids_untouched(processor, prompt_of):
    prompt = prompt_of("?", (64, 64))
    # "red" letter by letter: decoding and encoding again would give the single id of the word.
    response = [processor.tokenizer.convert_tokens_to_ids(c) for c in "red"]
    assert processor.encode_response(processor.decode(response))[:-1] != response
    after = processor.follow_up(prompt, response, "again")
    assert after.ids[:len(prompt.ids) + 3] == prompt.ids + response
    assert processor.tokenizer.decode(after.ids[len(prompt.ids) + 3:]) == (
        "<|im_end|>\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n")


def test_follow_up_keeps_the_whole_message_whatever_it_says(processor, prompt_of):
    prompt, message = prompt_of("?"), "step 1 says @@response@@ ; that is wrong"
    after = processor.follow_up(prompt, [5, 6, processor.eos_id], message)
    assert message in processor.tokenizer.decode(after.ids)


def test_another_image_changes_the_logprob_of_the_same_response(policy, processor, prompt_of):
    response = processor.encode_response("red 3 ; \\boxed{3}")
    first, other, again = (response_logprobs(policy.model,
                                             prompt_of("how many red ?", (96, 96), seed=s), response,
                                             processor) for s in (1, 2, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().min() > 1e-4


# -------------------------------------------------------------------------------------------------- files

def test_what_is_saved_is_read_back(tmp_path, processor, picture):
    queries = [Query("a", [picture(40, 50), picture(64, 33, seed=1)], "how many ?",
                     "red 3 ; \\boxed{3}", "3", "hard",
                     {"counts": [3, 1], "threshold": None}),
               Query("b", [], "Größe \"x\" \n ?", "\\frac{1}{2}", "½")]
    save_queries(queries, tmp_path / "set" / "data.jsonl")
    back = load_queries(tmp_path / "set" / "data.jsonl")
    for query, read in zip(queries, back, strict=True):
        assert {**vars(query), "images": None} == {**vars(read), "images": None}
        for image, file in zip(query.images, read.images, strict=True):
            assert torch.equal(processor.pixels(image)[0], processor.pixels(file)[0])
    save_queries(back, tmp_path / "copy" / "data.jsonl")                  # paths instead of bytes
    copied = load_queries(tmp_path / "copy" / "data.jsonl")
    assert torch.equal(processor.pixels(copied[0].images[1])[0], processor.pixels(queries[0].images[1])[0])


def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path):
    odd = "a\x0b b\x1c c\x85 d\u2028 e\u2029 f"               # str.splitlines() would split at each of these
    save_queries([Query("a", [], odd, odd, odd)], tmp_path / "data.jsonl")
    assert load_queries(tmp_path / "data.jsonl")[0].question == odd


def test_ids_that_look_alike_as_file_names_keep_their_own_images(tmp_path, processor, picture):
    save_queries([Query("q/1", [picture(32, 32, 1)], "?", "s", "a"),
                  Query("q:1", [picture(32, 32, 2)], "?", "s", "a")],
                 tmp_path / "data.jsonl")
    first, second = load_queries(tmp_path / "data.jsonl")
    assert not torch.equal(processor.pixels(first.images[0])[0], processor.pixels(second.images[0])[0])


def test_saving_over_an_older_data_set_replaces_its_images(tmp_path, processor, picture):
    for seed in (1, 2):
        save_queries([Query("q", [picture(32, 32, seed)], "?", "s", "a")], tmp_path / "data.jsonl")
    read = processor._pixels(load_queries(tmp_path / "data.jsonl")[0].images[0])[0]
    assert torch.equal(read, processor.pixels(picture(32, 32, 2))[0])


def noise(format: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(out, format)
    return out.getvalue()


BROKEN_IMAGES = {"text": b"this is no picture", "empty": b"", "half a PNG": noise("PNG")[:3000],
                 "half a JPEG": noise("JPEG")[:1000],
                 "flipped bytes": noise("PNG")[:300] + b"xx" + noise("PNG")[302:]}


@pytest.mark.parametrize("name", BROKEN_IMAGES)
def test_a_corrupt_image_is_one_line_with_its_file(tmp_path, processor, capsys, name):
    """Without a header it is a bad row when the file is read; half of one is found when it is decoded, with
    its row (in a run before the first step: test_askable.py)."""
    (tmp_path / "broken.png").write_bytes(BROKEN_IMAGES[name])
    file = write(tmp_path, row(), row(id="b", images=["broken.png"]))
    queries = load_queries(file)
    if name in ("text", "empty"):
        assert len(queries) == 1
        assert re.match(r"skipped .*data\.jsonl:2: cannot read image .*broken\.png", capsys.readouterr().err)
    else:
        with pytest.raises(DataError, match=r"^query b: cannot read image .*broken\.png \(\w+\)$"):
            processor.prompt(queries[1])
    done = subprocess.run([sys.executable, ROOT / "data.py", file], env=ALONE, capture_output=True, text=True)
    assert "broken.png" in done.stderr and done.returncode == (0 if len(queries) == 1 else 2)


BAD_ROWS = [
    (row(id="b", images=["none.png"]), "cannot read image .*none.png"),
    ({k: v for k, v in row(id="b").items() if k != "solution"}, "'solution' is missing or empty"),
    (row(id="b", solution=" \n"), "'solution' is missing or empty"),
    (row(id="b", answer=[3]), r"'answer' is no text: \[3\]"),
    (row(id="b", solutoin="typo"), r"unknown field\(s\) solutoin"),
    (row(), "id 'a' appears twice"),
    (row(id="b", images="one.png"), "'images' must be a list of paths"),
    ('{"id": "b", "images"', "not a JSON object"),
    ("[1, 2]", "must be a JSON object"),
    ('{"id": ' + "1" * 5000 + "}", "not a JSON object"),
    (row(id="b\ud800"), "not UTF-8 text"),
    (row(id="b", facts={"choices": ["red"]}), "'choices' of the facts must be letters and their texts"),
]


@pytest.mark.parametrize("bad, message", BAD_ROWS, ids=[message for _, message in BAD_ROWS])
def test_a_bad_row_is_skipped_counted_and_named(tmp_path, capsys, bad, message):
    read = load_queries(write(tmp_path, row(), "", bad, row(id="last")))          # the empty line counts
    assert [query.id for query in read] == ["a", "last"]
    named, counted = capsys.readouterr().err.splitlines()
    assert re.match(rf"skipped .*data\.jsonl:3: .*{message}", named)
    assert counted.startswith("1 bad rows skipped, 2 read from")


def test_many_bad_rows_are_counted_and_no_good_one_is_an_error(tmp_path, capsys):
    bad = [row(id=str(i), answer="") for i in range(25)]
    assert len(load_queries(write(tmp_path, row(), *bad))) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and lines[-1].startswith("25 bad rows skipped, 1 read")
    with pytest.raises(DataError,
                       match=r"no usable row in .*: all 25 are bad, the first: .*data\.jsonl:1: .*'answer'"):
        load_queries(write(tmp_path, *bad))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "part.parquet"], ids=["folder", "parquet"])
def test_what_is_no_jsonl_is_told_what_writes_one(tmp_path, name):
    with pytest.raises(DataError,
                       match=rf"^{tmp_path / name} is no JSONL file: python -m recipe.finevision "):
        load_queries(tmp_path / name)


def test_a_file_without_rows_and_no_file(tmp_path):
    with pytest.raises(DataError, match="data file is empty: .*data.jsonl"):
        load_queries(write(tmp_path, "", "  "))
    with pytest.raises(DataError, match="data file not found: .*other.jsonl"):
        load_queries(tmp_path / "other.jsonl")


def test_a_strip_that_no_image_processor_takes(tmp_path, capsys):
    Image.new("RGB", (1000, 4)).save(tmp_path / "strip.png")
    assert len(load_queries(write(tmp_path, row(), row(id="b", images=["strip.png"])))) == 1
    assert "image of 1000 x 4 pixels is too narrow" in capsys.readouterr().err


def test_16_bits_of_grey_are_not_cut_off():
    ramp = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0))
    assert np.asarray(as_seen(ramp))[0, :, 0].tolist() == list(range(256))


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "data.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="data.jsonl"):
        load_queries(tmp_path / "data.jsonl")


def test_order_of_an_epoch():
    order = batch_order(101, epoch=3, seed=7)
    assert sorted(order) == list(range(101)) and list(order) != list(range(101))
    assert (order == batch_order(101, 3, 7)).all()
    assert (order != batch_order(101, 4, 7)).any() and (order != batch_order(101, 3, 8)).any()
    assert (batch_order(101, 0, 1) != batch_order(101, 1, 0)).any()      # (seed, epoch) is no sum


def test_pictures_are_seen_as_people_see_them(processor):
    """Black writing on nothing is black on white; a photo taken upright stands upright."""
    chart = Image.new("RGBA", (96, 64), (0, 0, 0, 0))
    chart.paste((0, 0, 0, 255), (0, 0, 32, 64))
    photo = Image.new("RGB", (96, 64), "red")
    photo.paste("blue", (0, 0, 96, 32))
    exif = Image.Exif()
    exif[0x0112] = 6                                         # turn by 90 degrees to the right
    files = [io.BytesIO(), io.BytesIO()]
    chart.save(files[0], "PNG")
    photo.save(files[1], "PNG", exif=exif)
    chart, photo = (processor.picture(file.getvalue()) for file in files)
    assert chart.getpixel((5, 5)) == (0, 0, 0) and chart.getpixel((80, 5)) == (255, 255, 255)
    assert photo.size == (64, 96)
    assert photo.getpixel((60, 5)) == (0, 0, 255) and photo.getpixel((3, 5)) == (255, 0, 0)


@pytest.mark.parametrize("message",
                         ["<|im_<|im_end|>end|> hi", "<|image_<|image_pad|>pad|>", "<|im_end|><|im_end|>"])
def test_a_message_cannot_hide_a_special_token_in_another(processor, prompt_of, message):
    prompt, plain = prompt_of("how many red ?", (96, 96)), None
    for text in ("hi", message):
        ids = processor.follow_up(prompt, [5, processor.eos_id], text).ids
        specials = [i for i in ids if i in processor.tokenizer.added_tokens_decoder]
        assert plain in (None, specials)
        plain = specials
