"""Texts -> sequences of tokens, and their distribution over ranks and steps."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .faults import Fault, in_one_line
from .inputs import Inputs, refuse_row

TEXTS_AT_ONCE = 1000  # in one call of the tokenizer, to work on them in parallel
# Pieces of a text file: all of it at once would take the tokenizer far longer.
LINES_IN_A_PIECE = 1000
PIECES_AT_ONCE = 8
VALIDATION_SPLITS = ("validation", "valid", "val", "dev")
CONFIGS = {"wikitext": "wikitext-2-raw-v1", "Salesforce/wikitext": "wikitext-2-raw-v1"}
NO_LABEL = -100  # ignored by the loss


class Sequences(Dataset):
    """Sequences of tokens in one flat array; item i is a tensor of at most `max_seq_length`."""

    def __init__(self, tokens: np.ndarray, ends: np.ndarray) -> None:
        self.tokens = tokens
        self.ends = ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> torch.Tensor:
        begin = self.ends[index - 1] if index else 0
        return torch.from_numpy(self.tokens[begin : self.ends[index]].astype(np.int64))

    def cut(self, begin: int, end: int) -> Sequences:
        """Return the sequences from `begin` to before `end`."""
        first = self.ends[begin - 1] if begin else 0
        last = self.ends[end - 1] if end else 0
        return Sequences(self.tokens[first:last], self.ends[begin:end] - first)


@dataclass(frozen=True)
class Data:
    """The sequences to train on, and those held out; `digest` identifies the data set."""

    train: Sequences
    validation: Sequences | None
    digest: str
    notes: tuple[str, ...]


class RankBatches:
    """The indices of this rank's sequences in each global micro-batch, the batches of all ranks together.

    The order follows from seed and epoch alone, so any number of ranks sees the same sequences in the same steps.
    An incomplete last micro-batch of an epoch is left out. Without a seed: in order, nothing left out.
    """

    def __init__(
        self,
        samples: int,
        batch_sizes: tuple[int, ...],
        rank: int,
        seed: int | None = None,
    ) -> None:
        self.samples = samples
        self.seed = seed
        self.epoch = 0
        self.step = sum(batch_sizes)
        self.begin = sum(batch_sizes[:rank])
        self.end = self.begin + batch_sizes[rank]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.seed is not None:
            return self.samples // self.step
        return math.ceil(self.samples / self.step)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.samples))
        if self.seed is not None:
            shuffle = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
            order = torch.randperm(self.samples, generator=shuffle).tolist()
        for number in range(len(self)):
            first = number * self.step
            of_all_ranks = order[first : first + self.step]
            of_this_rank = of_all_ranks[self.begin : self.end]
            if of_this_rank:
                yield of_this_rank


class Loader(DataLoader):
    """Batches by `RankBatches`.

    It draws nothing from torch's global generator, because a resumed run restores the state of that one.
    """

    def __init__(
        self,
        sequences: Sequences,
        batches: RankBatches,
        pad_id: int,
        *,
        pin_memory: bool,
    ) -> None:
        super().__init__(
            sequences,
            batch_sampler=batches,
            collate_fn=collator(pad_id),
            generator=torch.Generator(),
            pin_memory=pin_memory,
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the order; called by the Trainer before each epoch."""
        self.batch_sampler.set_epoch(epoch)


def collator(pad_id: int) -> Callable[[list[torch.Tensor]], dict[str, torch.Tensor]]:
    """Make a function from sequences to a batch {name: (B, T) tensor}, padded to the longest."""

    def collate(sequences: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        batch = {
            "input_ids": pad(sequences, padding_value=pad_id),
            "labels": pad(sequences, padding_value=NO_LABEL),
        }
        lengths = {len(sequence) for sequence in sequences}
        # Without a mask attention is faster.
        if len(lengths) > 1:
            ones = [torch.ones_like(sequence) for sequence in sequences]
            batch["attention_mask"] = pad(ones)
        return batch

    return collate


def prepare(
    settings: SimpleNamespace,
    inputs: Inputs,
    tokenizer: Any,
    vocabulary: int,
    max_length: int,
) -> Data:
    """Read and tokenize a data set. Raises Fault for an unusable one."""
    wanted = settings.dataset
    notes: list[str] = []
    evaluates = settings.training.evaluation_strategy != "no"
    texts, held_out = _texts(wanted, inputs, evaluates, notes)
    train = _sequences(texts, wanted, inputs, tokenizer, max_length)
    if len(train) == 0:
        raise Fault(f"data set {wanted.name}: no text in it (split {wanted.split})")
    validation = None
    if held_out is not None:
        validation = _sequences(held_out, wanted, inputs, tokenizer, max_length)
    elif evaluates and wanted.validation_fraction > 0 and len(train) > 1:
        whole = train
        count = max(1, round(wanted.validation_fraction * len(whole)))
        train = whole.cut(0, len(whole) - count)
        validation = whole.cut(len(whole) - count, len(whole))
        notes.append(f"the last {count} sequences are held out for validation")
    if evaluates and not validation:
        validation = None
        notes.append(
            "there is nothing to evaluate on, so only the training loss will be known"
        )
    step = sum(inputs.batch_sizes)
    if len(train) < step:
        raise Fault(
            f"data set {wanted.name}: it gives {len(train)} sequences of {max_length} tokens to train on, and one "
            f"micro-step of all ranks takes {step}; make the batch sizes or model.max_seq_length smaller"
        )
    largest = int(train.tokens.max())
    if largest >= vocabulary:
        raise Fault(
            f"the tokenizer gives token {largest}, but the model knows only {vocabulary}; do they belong together?"
        )
    digest = hashlib.sha256()
    for part in (train, validation):
        if part:
            digest.update(part.tokens.tobytes())
            digest.update(part.ends.tobytes())
    return Data(train, validation, digest.hexdigest(), tuple(notes))


def _texts(
    wanted: SimpleNamespace, inputs: Inputs, evaluates: bool, notes: list[str]
) -> tuple[Iterable[str], Iterable[str] | None]:
    """Return the texts to train on, and those of a validation split if there is one. Raises Fault."""
    if inputs.dataset_kind == "text":
        return _of_text_file(inputs.dataset, whole=wanted.packing), None
    if inputs.dataset_kind == "jsonl":
        return _of_jsonl(inputs.dataset, wanted), None
    splits, train = _load_splits(wanted, inputs, notes)
    texts = _of_column(train, wanted)
    name = wanted.validation_split
    if not name:
        usual = [name for name in VALIDATION_SPLITS if name in splits]
        name = usual[0] if usual else None
    if not evaluates or not name or name == wanted.split:
        return texts, None
    return texts, _of_column(splits[name], wanted)


def _load_splits(
    wanted: SimpleNamespace, inputs: Inputs, notes: list[str]
) -> tuple[Any, Any]:
    """Load ({name: split}, the split to train on) from a folder or from the hub. Raises Fault."""
    # Late: it takes a second, and a text file or a .jsonl does not need it.
    import datasets

    datasets.disable_progress_bars()
    try:
        if inputs.dataset_kind == "folder":
            saved = datasets.load_from_disk(inputs.dataset)
            if isinstance(saved, datasets.DatasetDict):
                return saved, saved[wanted.split]
            return {}, saved
        variant = wanted.config or CONFIGS.get(wanted.name)
        if variant != wanted.config:
            notes.append(
                f"data set {wanted.name}: the variant {variant} is used (dataset.config)"
            )
        cache = str(Path(wanted.cache_dir).expanduser())
        load = partial(datasets.load_dataset, inputs.dataset, variant, cache_dir=cache)
        train = load(split=wanted.split)
        names = datasets.get_dataset_split_names(inputs.dataset, variant)
        splits = {}
        for name in names:
            if name in (wanted.validation_split, *VALIDATION_SPLITS):
                splits[name] = load(split=name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise Fault(f"data set {wanted.name}: {in_one_line(error)}") from error
    if wanted.validation_split and wanted.validation_split not in splits:
        raise Fault(
            f"data set {wanted.name}: it has no split {wanted.validation_split!r}; there is {', '.join(names)}"
        )
    return splits, train


def _of_text_file(path: str, *, whole: bool) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        if not whole:
            for line in file:
                yield line.strip()
            return
        while piece := "".join(islice(file, LINES_IN_A_PIECE)):
            yield piece


def _of_jsonl(path: str, wanted: SimpleNamespace) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"data set {wanted.name}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise Fault(f"{where}: it is no JSON: {error}") from error
            refuse_row(row, wanted.text_column, where)
            yield row[wanted.text_column]


def _of_column(rows: Any, wanted: SimpleNamespace) -> Iterator[str]:
    if wanted.text_column not in rows.column_names:
        columns = dict.fromkeys(rows.column_names)
        refuse_row(columns, wanted.text_column, f"data set {wanted.name}")
    for batch in rows.select_columns([wanted.text_column]).iter(TEXTS_AT_ONCE):
        for text in batch[wanted.text_column]:
            if not isinstance(text, str):
                raise Fault(
                    f"data set {wanted.name}: the column {wanted.text_column!r} holds no text, but {text!r:.40}"
                )
            yield text


def _sequences(
    texts: Iterable[str],
    wanted: SimpleNamespace,
    inputs: Inputs,
    tokenizer: Any,
    max_length: int,
) -> Sequences:
    """Tokenize the texts into sequences of at most `max_length` tokens.

    Packed: texts one after another, cut into full sequences and a rest. Else one text each, cut off.
    """
    # The pieces of a packed text file are one single text.
    pieces = inputs.dataset_kind == "text" and wanted.packing
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    chunks: list[np.ndarray] = []
    lengths: list[int] = []
    limit = None if pieces else wanted.max_texts
    source = (text for text in islice(texts, limit) if text.strip())
    at_once = PIECES_AT_ONCE if pieces else TEXTS_AT_ONCE
    while batch := list(islice(source, at_once)):
        encoded = tokenizer(batch, add_special_tokens=not pieces, verbose=False)
        for tokens in encoded["input_ids"]:
            if not pieces and tokens[-1:] != end:
                tokens = tokens + end
            if not wanted.packing:
                tokens = tokens[:max_length]
            # A sequence of one token gives the loss nothing to predict.
            if wanted.packing or len(tokens) > 1:
                chunks.append(np.asarray(tokens, dtype=np.int32))
                lengths.append(len(tokens))
    if pieces and chunks:
        chunks.append(np.asarray(end, dtype=np.int32))
    flat = np.concatenate(chunks) if chunks else np.empty(0, dtype=np.int32)
    if not wanted.packing:
        return Sequences(flat, np.cumsum(lengths, dtype=np.int64))
    ends = np.arange(max_length, len(flat) + max_length, max_length, dtype=np.int64)
    ends = np.minimum(ends, len(flat))
    if len(flat) % max_length == 1:
        ends = ends[:-1]
    used = ends[-1] if len(ends) else 0
    return Sequences(flat[:used], ends)
