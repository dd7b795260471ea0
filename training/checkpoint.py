"""Checkpoints: of a policy (whole weights for everybody, shards and optimiser state for going on), and what
may be wrong with one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from data import DataError, Processor
from policy import Policy
from tools.files import writing
from tools.programs import first_line
from training.stopping import on_all_ranks


@contextmanager
def loading(what: str) -> Iterator[None]:
    """One line for whatever transformers raises on a folder that is no complete vision-language model."""
    from transformers.utils import logging

    logging.disable_progress_bar()                        # bars of a model that loads in a second
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, AttributeError, KeyError, TypeError, ImportError,
            SafetensorError) as error:
        raise DataError(f"cannot load {what}: {first_line(error, 3)}") from None


def model_fingerprint(model: str) -> str:
    """The architecture of a checkpoint as one string: a run is resumed with the model it began with."""
    from transformers import AutoConfig

    with loading(f"model {model}"):
        config = AutoConfig.from_pretrained(model).to_dict()                    # a folder or a hub id
    text, vision = config.get("text_config", {}), config.get("vision_config", {})
    return ", ".join(f"{k}={v}" for k, v in [
        ("type", config.get("model_type")), ("hidden", text.get("hidden_size")),
        ("layers", text.get("num_hidden_layers")), ("vocab", text.get("vocab_size")),
        ("vision_depth", vision.get("depth")), ("vision_hidden", vision.get("hidden_size"))])


def save_checkpoint(policy: Policy, folder: Path) -> None:
    """Into one folder that all ranks see: an ordinary Hugging Face checkpoint (whole weights, compute dtype)
    and, in trainer/, one file per rank with its shards of master weights and optimiser state.  Safetensors
    only; in a folder of their own, because vLLM takes every such file beside the model for a part of it."""
    tied = set(policy.model.state_dict()) - {name for name, _ in policy.model.named_parameters()}
    whole = {}
    for name, tensor in policy.weights():                                     # gathered by all, kept by one
        if policy.rank == 0 and name not in tied:
            whole[name] = tensor.detach().cpu()

    def write() -> None:
        with writing(f"checkpoint {folder}"):
            save_shards(policy, folder / "trainer")
            if policy.rank == 0:
                save_model(policy, whole, folder)
    on_all_ranks(write)


def save_shards(policy: Policy, folder: Path) -> None:
    state = {f"weight.{name}": local_shard(p).detach() for name, p in policy.model.named_parameters()}
    state |= {f"{key}.{name}": local_shard(value) for name, p in policy.parameters.items()
              for key, value in policy.optimizer.state.get(p, {}).items()}
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.cpu().clone() for name, tensor in state.items()},
              folder / f"{policy.rank:05d}-of-{policy.world:05d}.safetensors")


def save_model(policy: Policy, whole: dict[str, torch.Tensor], folder: Path) -> None:
    policy.model.save_pretrained(folder, state_dict=whole)
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        part["dtype"] = str(policy.compute_dtype)[6:]                 # of the file, not of the master weights
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_processor(policy.processor, folder)


def save_processor(processor: Processor, folder: Path) -> None:
    """All that a checkpoint needs besides weights.  The source's video and processor settings go along:
    other programs (vLLM) build a processor for videos too, even if they never see one."""
    from transformers.utils import cached_file

    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    for name in ("video_preprocessor_config.json", "processor_config.json"):
        path = cached_file(processor.source, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            settings = json.loads(Path(path).read_text(encoding="utf-8"))
            if "image_processor" in settings:             # it would go before the file written above
                settings["image_processor"] = json.loads(processor.image_processor.to_json_string())
            (Path(folder) / name).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def load_checkpoint(policy: Policy, folder: Path) -> None:
    """Restores what save_checkpoint() wrote, on any number of ranks; the reference stays as it is."""
    files = sorted(folder.glob("trainer/*-of-*.safetensors"))
    if not files or len(files) != int(files[0].stem[-5:]):
        raise ValueError(f"{folder}/trainer: {len(files)} files, that is not all of them")
    own = policy.world == len(files)
    shards = [safe_open(file, "pt") for file in (files[policy.rank:policy.rank + 1] if own else files)]

    def read(name: str, into: torch.Tensor) -> None:
        pieces = [shard.get_tensor(name) for shard in shards]
        whole = torch.cat(pieces) if len(pieces) > 1 and pieces[0].dim() else pieces[0]
        if isinstance(into, DTensor) and not own:
            parts = whole.chunk(policy.world)                                 # FSDP2 cuts the first dimension
            whole = parts[policy.rank] if policy.rank < len(parts) else whole[:0]
        if local_shard(into).shape != whole.shape:
            shape = tuple(local_shard(into).shape)
            raise ValueError(f"{folder}: {name} is {tuple(whole.shape)}, not {shape}")
        local_shard(into).copy_(whole)

    names = set(shards[0].keys())
    expected = {f"weight.{name}" for name, _ in policy.model.named_parameters()}
    if {name for name in names if name.startswith("weight.")} != expected:
        raise ValueError(f"{folder}: weights of another model")
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            read(f"weight.{name}", p)
        if names != expected:                                               # no state before the first update
            for name, p in policy.parameters.items():
                moments = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
                state = {"step": torch.tensor(0.0)} | moments
                for key, value in state.items():
                    read(f"{key}.{name}", value)
                policy.optimizer.state[p] = state


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a sharded tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
