"""Train a small character-level transformer, in one process or on many machines.

On one CPU, a few seconds:
    python scripts/train_single_test.py --num-epochs 1
Three ranks on this machine:
    torchrun --nproc-per-node 3 scripts/train_single_test.py --num-epochs 3
One rank per host, as UGRO starts it (here host 0 of 3):
    torchrun --nnodes 3 --node-rank 0 --master-addr 192.168.1.100 --master-port 29500 \
        scripts/train_single_test.py --num-epochs 3 --learning-rate 0.003 --job-id exp1
On from where a run stopped:
    ... scripts/train_single_test.py --num-epochs 6 --resume latest

Rank 0 writes into $UGRO_OUTPUT_DIR (default ./output): `metrics.jsonl`, one object a logged step;
`checkpoints/epoch_<n>.pt` after n whole epochs, `epoch_<n>_step_<s>.pt` if stopped within the next, each with its
manifest; `artifacts/sample.txt`, a text written by the trained model. The other ranks write nothing.

Exit code: 0 done; 2 an unusable argument or file; 143 stopped by TERM, after a checkpoint.
"""
# mypy: allow-subclassing-any, allow-untyped-decorators, disable-error-code="import-not-found"

import argparse
import hashlib
import os
import pickle
import socket
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from training.checkpoints import manifest_of, whole_ones, write_manifest
from training.metrics import append_line
from training.stopping import STOPPED_BY_TERM, Stop

RANK = int(os.environ.get("RANK", "0"))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))
OUTPUT = Path(os.environ.get("UGRO_OUTPUT_DIR", "output"))
MODELS = ("char-transformer",)
DATASETS = {"shakespeare": Path(__file__).parent / "data" / "shakespeare.txt"}
# A step takes milliseconds: a longer wait is for a dead peer.
STOP_GRACE_SECONDS = 3.0


class Parser(argparse.ArgumentParser):
    """A parser with one-line errors, without the usage, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"train_single_test: {message}\n")


def positive(text: str) -> int:
    """Parse a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


parser = Parser(
    description="Train a small character-level transformer.", allow_abbrev=False
)
parser.add_argument(
    "--model-name", default=MODELS[0], help=f"one of: {', '.join(MODELS)}"
)
parser.add_argument(
    "--dataset-name", default="shakespeare", help="that, or the path of a text"
)
parser.add_argument("--num-epochs", type=positive, default=3)
parser.add_argument(
    "--learning-rate", type=float, default=3e-3, help="constant after 10 steps"
)
parser.add_argument("--job-id", default=os.environ.get("UGRO_JOB_ID", "local"))
parser.add_argument(
    "--batch-size", type=positive, default=8, help="sequences per rank and step"
)
parser.add_argument(
    "--context", type=positive, default=64, help="characters per sequence"
)
parser.add_argument(
    "--steps-per-epoch", type=positive, help="default: one pass over the text"
)
parser.add_argument("--layers", type=positive, default=2)
parser.add_argument("--heads", type=positive, default=4)
parser.add_argument("--width", type=positive, default=64)
parser.add_argument("--seed", type=int, default=1)
resume_help = "a checkpoint that rank 0 can read; default: UGRO_RESUME"
parser.add_argument(
    "--resume",
    default=os.environ.get("UGRO_RESUME"),
    metavar="PATH|latest",
    help=resume_help,
)
parser.add_argument("--save-every-epochs", type=positive, default=1)
parser.add_argument(
    "--log-every", type=positive, default=5, help="steps per line of metrics.jsonl"
)
args = parser.parse_args()

# Faults are reported before torch is imported, because that takes seconds.
if args.model_name not in MODELS:
    parser.error(
        f"unknown model {args.model_name!r}; this script trains: {', '.join(MODELS)}"
    )
if args.width % args.heads:
    parser.error(f"--width {args.width} cannot be divided among --heads {args.heads}")
try:
    text = DATASETS.get(args.dataset_name, Path(args.dataset_name)).read_text(
        encoding="utf-8"
    )
except (OSError, UnicodeError) as error:
    reason = getattr(error, "strerror", None) or "not UTF-8"
    known = ", ".join(DATASETS)
    parser.error(
        f"unknown dataset {args.dataset_name!r}; known: {known}; as a file: {reason}"
    )
if len(text) < 2 * args.context + 1:
    parser.error(
        f"the text has {len(text)} characters; --context {args.context} needs twice that"
    )

say = partial(print, flush=True)  # a line of progress is of use when it is written
say(
    f"train_single_test: rank {RANK} of {WORLD_SIZE}, job {args.job_id}, importing torch"
)

import torch  # noqa: E402  (late on purpose, see above)
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.elastic.multiprocessing.errors import record  # noqa: E402
from training.char_transformer import CharTransformer  # noqa: E402


def join_ranks() -> torch.device:
    """Wait for all ranks (plain python: one alone), compare their texts and return this rank's device."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # CUDA_VISIBLE_DEVICES="" asks for the CPU.
    use_cuda = torch.cuda.device_count() >= local_ranks
    device = torch.device("cpu")
    if use_cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if use_cuda else "gloo",
        store=None if "MASTER_ADDR" in os.environ else dist.HashStore(),
        rank=RANK,
        world_size=WORLD_SIZE,
        # Longer than any cut of the network worth sitting out.
        timeout=timedelta(minutes=5),
        device_id=device if use_cuda else None,
    )
    # Namespaces and containers of one machine have host names of their own, but one boot id.
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    host = socket.gethostname()
    machine = boot_id.read_text() if boot_id.exists() else host
    digest = hashlib.sha256(text.encode()).hexdigest()
    answers: list[Any] = [None] * WORLD_SIZE
    dist.all_gather_object(answers, (machine, digest))
    machines = [answer[0] for answer in answers]
    digests = [answer[1] for answer in answers]
    for rank, other in enumerate(digests):
        if other != digests[0]:
            parser.error(
                f"{args.dataset_name} is another text on rank {rank} than on rank 0"
            )
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // machines.count(machine))
    torch.set_num_threads(threads)
    say(f"rank {RANK} of {WORLD_SIZE} on {host}: {device}, threads: {threads}")
    return device


def load_checkpoint(
    model_shape: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Return the checkpoint of --resume, on every rank. Rank 0 reads it; a fault there ends all ranks."""
    shared: list[Any] = [None]
    if RANK == 0:
        shared[0] = read_checkpoint(model_shape)
    dist.broadcast_object_list(shared, src=0, device=device)
    checkpoint = shared[0]
    if isinstance(checkpoint, str):
        parser.error(checkpoint.splitlines()[0])
    return dict(checkpoint)


def read_checkpoint(model_shape: dict[str, Any]) -> dict[str, Any] | str:
    """Read the checkpoint of --resume; return a message if that fails."""
    path = Path(args.resume)
    if args.resume == "latest":
        folder = OUTPUT / "checkpoints"
        checkpoints = whole_ones(folder, "epoch_*.pt")
        # Without any, reading the folder fails with its name.
        path = checkpoints[-1] if checkpoints else folder
    try:
        checkpoint: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=True
        )
        shape = checkpoint["model_shape"]
    except (
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        pickle.UnpicklingError,
    ) as error:
        return f"cannot resume from {path}: {error}"
    if shape != model_shape:
        return f"{path} is of another model or text: {shape}"
    return checkpoint


@torch.no_grad()
def sample(
    model: nn.Module, vocabulary: str, device: torch.device, length: int = 400
) -> str:
    """Write text with the model, one character after the other."""
    generator = torch.Generator().manual_seed(args.seed)
    codes = [vocabulary.find("\n") % len(vocabulary)]  # begin like a new line
    for _ in range(length):
        window = torch.tensor([codes[-args.context :]], device=device)
        odds = model(window)[0, -1].softmax(-1).cpu()
        codes.append(int(torch.multinomial(odds, 1, generator=generator)))
    return "".join(vocabulary[code] for code in codes[1:])


def train() -> None:
    """Train this rank; ends with STOPPED_BY_TERM after a TERM."""
    device = join_ranks()
    vocabulary = "".join(sorted(set(text)))
    data = torch.tensor([vocabulary.index(character) for character in text])
    # One less, so that each epoch can start elsewhere.
    windows = len(data) // args.context - 1
    global_batch = args.batch_size * WORLD_SIZE
    steps_per_epoch = args.steps_per_epoch or max(1, windows // global_batch)
    total_steps = args.num_epochs * steps_per_epoch
    config = {
        **vars(args),
        "steps_per_epoch": steps_per_epoch,
        "world_size": WORLD_SIZE,
    }

    # The same on all ranks: they start from the same model.
    torch.manual_seed(args.seed)
    shape = {name: config[name] for name in ("context", "layers", "width", "heads")}
    model = CharTransformer(len(vocabulary), **shape).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95)
    )
    model_shape = {"vocabulary": vocabulary, **shape}
    step = 0
    if args.resume:
        checkpoint = load_checkpoint(model_shape, device)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        torch.set_rng_state(checkpoint["rng"])
        step = checkpoint["step"]
        if checkpoint["config"]["steps_per_epoch"] != steps_per_epoch:
            # Other ranks or batches: its unfinished epoch begins again.
            step = checkpoint["epoch"] * steps_per_epoch
    replica = nn.parallel.DistributedDataParallel(model)
    if RANK == 0:
        (OUTPUT / "checkpoints").mkdir(parents=True, exist_ok=True)
        (OUTPUT / "artifacts").mkdir(exist_ok=True)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        steps = f"{step} of {total_steps} steps done, {steps_per_epoch} an epoch"
        say(f"{parameters:,} parameters, {len(text):,} characters, {steps}")

    stop = Stop(say, agree_seconds=lambda: STOP_GRACE_SECONDS)
    started = last_logged = time.monotonic()
    characters = 0
    while step < total_steps:
        # The order follows from seed and epoch alone, so a resumed run has the same batches.
        epoch, within = divmod(step, steps_per_epoch)
        shuffle = torch.Generator().manual_seed(args.seed + 1_000_003 * epoch)
        offset = int(torch.randint(args.context, (1,), generator=shuffle))
        order = torch.randperm(windows, generator=shuffle)
        mine = within * global_batch + RANK + WORLD_SIZE * torch.arange(args.batch_size)
        begins = order[mine % windows] * args.context + offset
        batch = data[begins[:, None] + torch.arange(args.context + 1)].to(device)

        logits = replica(batch[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step += 1
        # Not a function of the total: a run of 1 epoch, resumed to 2, is a run of 2 epochs.
        rate = args.learning_rate * min(1.0, step / 10)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()

        # One all-reduce of two numbers a step gives all ranks the mean loss and any request to stop,
        # so all leave after the same step. It costs no more than any small message.
        asked = loss.new_tensor(float(stop.asked.is_set()))
        shared = torch.stack((loss.detach(), asked))
        dist.all_reduce(shared)
        mean_loss = float(shared[0]) / WORLD_SIZE
        stopping = float(shared[1]) > 0
        if stopping:
            stop.agreed.set()
        characters += global_batch * args.context

        log_due = step in (1, total_steps) or step % args.log_every == 0
        if RANK == 0 and (stopping or log_due):
            now = time.monotonic()
            characters_per_second = characters / (now - last_logged)
            line = {
                "step": step,
                "total_steps": total_steps,
                "epoch": epoch + 1,
                "total_epochs": args.num_epochs,
                "loss": mean_loss,
                "learning_rate": rate,
                "tokens_per_second": round(characters_per_second, 1),
                "elapsed_seconds": round(now - started, 3),
                "time": round(time.time(), 3),
            }
            append_line(OUTPUT / "metrics.jsonl", line)
            where = f"epoch {epoch + 1}/{args.num_epochs} step {step}/{total_steps}"
            say(
                f"{where}: loss {mean_loss:.4f}, {line['tokens_per_second']:,.0f} characters/s"
            )
            last_logged = now
            characters = 0

        steps_between = steps_per_epoch * args.save_every_epochs
        save_due = step == total_steps or step % steps_between == 0
        if RANK == 0 and (stopping or save_due):
            epoch, within = divmod(step, steps_per_epoch)
            suffix = f"_step_{step}" if within else ""
            path = OUTPUT / "checkpoints" / f"epoch_{epoch}{suffix}.pt"
            content = {
                "step": step,
                "epoch": epoch,
                "config": config,
                "model_shape": model_shape,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng": torch.get_rng_state(),
            }
            # It may be that of an earlier run's checkpoint of this name.
            manifest_of(path).unlink(missing_ok=True)
            unfinished = path.with_suffix(".tmp")
            torch.save(content, unfinished)
            unfinished.replace(path)  # no reader sees half a checkpoint
            epochs_done = epoch + within / steps_per_epoch
            write_manifest(
                path,
                step=step,
                epoch=epochs_done,
                rank=0,
                ranks=[0],
                world_size=WORLD_SIZE,
            )
            say(f"saved {path}")
        if stopping:
            # A rank leaving first would make torchrun end the saving rank.
            dist.barrier()
            say(f"rank {RANK}: stopped by TERM after step {step}")
            sys.exit(STOPPED_BY_TERM)

    if RANK == 0:
        path = OUTPUT / "artifacts" / "sample.txt"
        path.write_text(sample(model, vocabulary, device) + "\n", encoding="utf-8")
        say(f"wrote {path}; trained for {time.monotonic() - started:.1f} s")


@record  # writes the traceback into a file, for torchrun and UGRO to read the cause from
def main() -> None:
    try:
        train()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    # Without Python's own shutdown: gloo's threads survive their group, and a thread dropping its
    # last tensor then aborts the process (torch 2.13, some runs in a hundred).
    sys.stdout.flush()
    os._exit(code)
