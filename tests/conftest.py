"""What all tests share: the repository on sys.path, one thread, a tiny untrained Qwen3-VL and what reads it.

An untrained model treats all tokens almost alike, and a test on it would hardly see a wrong mask or position.
So the matrices of the checkpoint are made larger: attention becomes sharp, and a mistake shows in the first
digits.
"""

import io
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save_file

import toy
from data import Processor, Query, save_queries
from policy import Policy
from toy import warm_start

torch.set_num_threads(1)
pytest.register_assert_rewrite("helpers")             # its assertions too tell what differs

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(ROOT / "toy" / "checkpoint")
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(autouse=True)
def stay_here(monkeypatch):
    """Programs that run in this process leave it as sys.exit() does."""
    monkeypatch.setattr("tools.programs.leave", sys.exit)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """Folder of an untrained tiny Qwen3-VL with tokenizer, image processor and chat template."""
    folder = tmp_path_factory.mktemp("checkpoint")
    warm_start.build_checkpoint(folder)
    weights = load((folder / "model.safetensors").read_bytes())
    save_file({name: 4 * w if w.dim() > 1 else w for name, w in weights.items()},
              folder / "model.safetensors",
              metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Folder with data files: train.jsonl (all families), hard.jsonl and shortcut.jsonl (one),
    heldout.jsonl."""
    folder = tmp_path_factory.mktemp("world")
    save_queries(toy.train_queries(size=40), folder / "train.jsonl")
    for family in ("hard", "shortcut"):
        save_queries([toy.make_query(family, i, "train", "half") for i in range(12)],
                     folder / f"{family}.jsonl")
    save_queries(toy.heldout_queries(size=2), folder / "heldout.jsonl")
    return folder


@pytest.fixture(scope="session")
def processor(checkpoint) -> Processor:
    return Processor(checkpoint)


@pytest.fixture
def policy(checkpoint, processor) -> Policy:
    """A new fp32 policy for each test: it may be trained."""
    return Policy(checkpoint, processor)


@pytest.fixture(scope="session")
def picture():
    """-> picture(width, height, seed): a PNG of noise, as bytes.  No two seeds look alike to the model."""
    def draw(width: int, height: int, seed: int = 0) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        return out.getvalue()
    return draw


@pytest.fixture
def folder(tmp_path, picture) -> Path:
    """Three pictures, a copy of one under another name, and half of one."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(64, 64, i))
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "half.png").write_bytes((tmp_path / "0.png").read_bytes()[:20])
    return tmp_path


@pytest.fixture(scope="session")
def prompt_of(processor, picture):
    """-> prompt_of(question, (w, h), ...): a prompt with one picture of noise for each size."""
    def build(question: str, *sizes: tuple[int, int], seed: int = 0):
        images = [picture(w, h, seed + i) for i, (w, h) in enumerate(sizes)]
        return processor.prompt(Query("test", images, question, "-", "-"))
    return build


def plain_logits(model, ids: list[int], images: list, processor: Processor) -> torch.Tensor:
    """Logits [L, V] of ONE unpadded sequence by the plain forward pass:
    the model makes its own positions and mask.

    Everything that pads, packs, caches or makes positions is compared with this.
    """
    tokens = torch.tensor([ids])
    pixels = processor.pixel_batch(images)
    types = {"mm_token_type_ids": (tokens == processor.image_id).long()} if images else {}
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, **pixels,
                 **types).logits[0]


def response_logprobs(model, prompt, response: list[int], processor: Processor,
                      temperature: float = 1.0) -> torch.Tensor:
    """Log-prob of each response token after the prompt, over the allowed ids: [T]."""
    logits = plain_logits(model, prompt.ids + response, prompt.images, processor)
    logits = logits[len(prompt.ids) - 1:-1] / temperature
    logits = logits.index_fill(1, torch.tensor(processor.forbidden_ids), -torch.inf)
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None])[:, 0]
