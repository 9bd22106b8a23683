"""The experiment folder; no other module knows its file names.

    experiments/
      exp1_20260120_120000/     one job, see `Experiment`
      job_history.jsonl         one line for each ended job
      cluster_state.json        the last probe
      .agent.lock               locked by the agent of this folder, with its pid inside
      .agent.stderr             the last words of an agent that crashed

Where several people share the folder, each further one has these four with their user id in the
name, and an agent of their own.

Files are replaced whole or appended to in whole lines. UGRO's own are readable by their owner only.
No path is followed through a link, see `files.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..cluster.model import Cluster
from ..codec import UNREADABLE, convert, decode
from ..errors import NotSigned, RecordError
from ..files import File, Folder, Held, process_lives
from ..node.processes import user_name
from ..node.protocol import GPU, LOG, METRICS
from .gpu_use import GpuSamples
from .outputs import HALF_WRITTEN, Outputs
from .phase import Reason
from .record import JobRecord, Kind, in_present_format
from .record_file import FORMAT, Document, RecordFile, with_unknown_fields
from .signature import is_signed, sign
from .snapshot import pack
from .sole_supervision import why_not_here
from .state import Event, JobState

JOB_ID = re.compile(r".+_\d{8}_\d{6}", re.ASCII | re.DOTALL)
STAMP_LENGTH = len("_20260120_120000")
LOG_NAME = re.compile(r"training_rank(\d+)\.log")
METRICS_NAME = "metrics.jsonl"
# Ends of names, by the kind of a stream's frames.
LATE = {LOG: "log", METRICS: "metrics.jsonl", GPU: "gpu.jsonl"}
# What a signature is for.
JOB = "job"
STOP = "stop"
# Of a request to stop. The file is there from the start, because a disk may be full by then.
STOP_BYTES = 1024


class StopOfJob(msgspec.Struct, frozen=True, kw_only=True):
    """The request to stop a job; `at` is in Unix seconds."""

    format: int = FORMAT
    job_id: str
    nonce: str
    reason: Reason = Reason.ASKED
    give_up: bool = False
    at: float


class Experiment:
    """One job's folder. No other class builds a path in it.

    config.json        the JobRecord, signed    state.json     the JobState; both with a hidden copy
    code/              the scripts as launched  events.jsonl   the job's events
    logs/              stdout and stderr of each rank, byte for byte
    logs/late/         what came of an attempt's streams after the next attempt had begun
    metrics.jsonl      one object for each logged step, from rank 0
    gpu.jsonl          GPU samples of all nodes
    manifests/<rank>/  one file for each checkpoint of a rank that is here whole
    outputs/<rank>/    the files written by a rank; nothing of UGRO's own is in there
    checkpoints artifacts tensorboard      links to those of rank 0
    stop               blank until the job is asked to stop

    The folder of a job made before format 2 has no outputs/, see `outputs.py`.
    """

    def __init__(self, folder: Path, files: Folder | None = None) -> None:
        self.folder = folder
        self.job_id = folder.name
        self.files = files or Folder(folder.parent, folder.name)
        self.metrics = self.files.file(METRICS_NAME)
        self.gpu = self.files.file("gpu.jsonl")
        self.code = self.files.folder("code")
        self._config = RecordFile(self.files, "config.json")
        self._state = RecordFile(self.files, "state.json")
        self._events = self.files.file("events.jsonl")
        self._stop = self.files.file("stop")
        self.outputs = Outputs(self.files)
        self._samples = GpuSamples(self.gpu)

    @property
    def name(self) -> str:
        """Return the job's name: its id without the time stamp."""
        return name_of(self.job_id)

    def held(self) -> Experiment:
        """Return the same job with its folder kept open, for whoever writes into it; raises RecordError.

        So it is reached wherever it is moved to.
        """
        try:
            return Experiment(self.folder, self.files.held())
        except OSError as error:
            raise RecordError(f"{self.folder}: {error.strerror}") from error

    def was_deleted(self) -> bool:
        """Return whether the folder, kept open, was removed for good; never on a mere suspicion."""
        root = self.files.root
        return isinstance(root, Held) and root.was_deleted

    def take_up_again(self, nonce: str) -> None:
        """Go on in the folder that has its path now, if that is the same job's and the one kept open is of no use.

        It was restored, or its disk is back.
        """
        root = self.files.root
        if not isinstance(root, Held) or root.is_at_its_path():
            return
        with contextlib.suppress(RecordError):
            if not root.was_deleted:
                self._config.read()
                return
        with contextlib.suppress(OSError, RecordError):
            if Experiment(self.folder).signed_record().nonce == nonce:
                root.take_up_again()

    def log(self, rank: int) -> File:
        """Return a rank's log."""
        return self.files.file(f"logs/training_rank{rank}.log")

    def late_stream(self, attempt: int, rank: int, kind: int) -> File:
        """Return the file for what an earlier attempt's stream brought after the next one had begun."""
        return self.files.file(f"logs/late/attempt{attempt}_rank{rank}.{LATE[kind]}")

    def record(self) -> JobRecord:
        """Read config.json, whoever wrote it; raises RecordError if it makes no sense.

        It is for showing: what is to be run or asked comes from `signed_record`.
        """
        return self._record_in(self._config.read())

    def is_signed(self) -> bool:
        """Return whether this user launched or adopted the job; raises RecordError."""
        return is_signed(self._config.read(), JOB)

    def signed_record(self) -> JobRecord:
        """Read config.json; raises NotSigned unless this user launched or adopted the job."""
        document = self._config.read()
        if not is_signed(document, JOB):
            raise NotSigned(f"{self.job_id}: {self._whose()}")
        record = self._record_in(document)
        self.check_is_of(record)
        return record

    def _whose(self) -> str:
        """Say why the job is only shown, and what may be done."""
        owner = self._config.file.owner()
        if owner != os.geteuid() and not os.access(self.folder, os.W_OK):
            return f"launched by {user_name(owner)}, who alone can stop, resume or clean it"
        return (
            "not launched by you, or not on this machine; it is only shown. "
            f"See what it would run where, and take it over: inv agent.adopt {self.job_id}"
        )

    def check_is_of(self, record: JobRecord) -> None:
        """Raise NotSigned for the record of another job, in a folder that was renamed or filled by hand."""
        if record.job_id != self.job_id:
            raise NotSigned(
                f"{self.folder}: the record of another job, {record.job_id}; give the folder that name back"
            )

    def check_supervisable(self) -> None:
        """Raise RecordError if no agent of this user, this version and this folder may supervise the job.

        Whatever cannot be understood is left as it is: another version of UGRO may have written it.
        """
        record = self.signed_record()
        state = self.state()
        self.cluster_in(record)
        newest = max(record.format, state.format)
        if newest > FORMAT:
            why = f"its records have format {newest}, and this UGRO knows {FORMAT} at most"
        elif record.kind is not Kind.TRAINING:
            why = f"it is a job of kind {record.kind}, which this UGRO does not run"
        elif not state.phase.known:
            why = f"its state is {state.phase}, a word that this UGRO does not know"
        else:
            return self.check_is_no_copy()
        raise RecordError(f"{self.job_id}: {why}; it is left alone: update UGRO")

    def check_is_no_copy(self) -> None:
        """Raise RecordError if an agent supervises the job, or has done so to its end, in another folder."""
        why = why_not_here(self)
        if why:
            raise RecordError(f"{self.job_id}: {why}; it is left alone here")

    def _record_in(self, document: Document) -> JobRecord:
        try:
            return convert(JobRecord, in_present_format(document))
        except UNREADABLE as error:
            raise self._config.damaged(error) from error

    def cluster(self) -> Cluster:
        """Return the cluster as it was at launch; raises NotSigned and RecordError."""
        return self.cluster_in(self.signed_record())

    def cluster_in(self, record: JobRecord) -> Cluster:
        """Return the cluster of a record; raises RecordError if it is none that this UGRO knows."""
        try:
            return Cluster.from_json(record.cluster)
        except ValueError as error:
            raise RecordError(
                f"{self._config.file.path}: its cluster is none that this UGRO knows: {error}"
            ) from error

    def save_record(self, record: JobRecord) -> None:
        """Replace config.json, signed by this user; fields of other versions are kept.

        Raises NotSigned if there is one without this user's signature: see `adopt`.
        """
        before = self._before(self._config)
        if before and not is_signed(before, JOB):
            self.signed_record()
        self._write_signed(record, before)

    def adopt(self, shown: JobRecord) -> None:
        """Sign the record as this user's own, in the present format.

        Raises RecordError unless it is still the one that was shown.
        """
        before = self._config.read()
        if self._record_in(before) != shown:
            raise RecordError(f"{self.job_id}: changed since it was shown; look again")
        adopted = msgspec.structs.replace(shown, format=max(shown.format, FORMAT))
        self._write_signed(adopted, before)

    def _write_signed(self, record: JobRecord, before: Document) -> None:
        document = with_unknown_fields(record, in_present_format(before))
        self._config.write(sign(document, JOB))

    def _before(self, file: RecordFile) -> Document:
        """Return what a record says now; nothing if there is none, or it is torn beyond repair."""
        try:
            return file.read()
        except RecordError:
            return {}

    def state(self) -> JobState:
        """Read state.json; raises RecordError if it makes no sense."""
        try:
            return convert(JobState, self._state.read())
        except UNREADABLE as error:
            raise self._state.damaged(error) from error

    def save_state(self, state: JobState) -> None:
        """Replace state.json; fields of other versions are kept."""
        before = self._before(self._state)
        self._state.write(with_unknown_fields(state, before))

    def mend_torn_records(self) -> list[str]:
        """Write records torn by a power cut again, from their copies; return their names."""
        torn = [record for record in (self._config, self._state) if record.is_torn()]
        for record in torn:
            record.write(record.read())
        return [record.file.path.name for record in torn]

    def remove_half_written(self) -> None:
        """Remove the temporary files of records, left by killed processes."""
        for entry in self.files.entries():
            found = HALF_WRITTEN.fullmatch(entry.name)
            if found and not process_lives(found[1]):
                with contextlib.suppress(OSError):
                    self.files.remove(entry.name)

    def add_event(self, event: Event) -> int:
        """Append to events.jsonl; return the bytes of half a line cut off before. Raises OSError."""
        return self._events.append_lines(msgspec.json.encode(event) + b"\n")

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """Return the events from a byte offset on, and the offset after them."""
        raw = self._events.read(offset)
        whole = raw[: raw.rfind(b"\n") + 1]
        return list(_events(whole)), offset + len(whole)

    def ask_to_stop(self, *, give_up: bool = False) -> None:
        """Ask the agent to stop the job, as `inv stop` and Ctrl-C do; raises RecordError.

        With `give_up` the job ends without waiting for unreachable nodes.
        """
        record = self.record()
        request = StopOfJob(
            job_id=self.job_id, nonce=record.nonce, give_up=give_up, at=time.time()
        )
        signed = sign(msgspec.to_builtins(request), STOP)
        try:
            self._stop.overwrite(msgspec.json.encode(signed).ljust(STOP_BYTES))
        except OSError as error:
            raise RecordError(
                f"{self._stop.path}: {error.strerror}; the job was not asked to stop"
            ) from error

    def make_room_for_stop(self) -> None:
        """Make the file of a later request to stop; raises OSError."""
        self._stop.replace(b" " * STOP_BYTES)

    def stop_request(self) -> StopOfJob | None:
        """Read the request to stop, None if there is none.

        Raises RecordError for what is none of this user for this job: neither a lost secret nor
        another user's words are a request, nor the end of the job. Raises OSError if it cannot be read.
        """
        raw = self._stop.read().strip(b" \0")
        if not raw:
            return None
        try:
            document = decode(Document, raw)
            request = convert(StopOfJob, document)
        except UNREADABLE as error:
            raise RecordError(f"{self._stop.path}: {error}") from error
        if not is_signed(document, STOP):
            raise NotSigned(f"{self._stop.path}: not written by you on this machine")
        if request.job_id != self.job_id or request.nonce != self.record().nonce:
            raise NotSigned(f"{self._stop.path}: for another job, {request.job_id}")
        return request

    def code_archive(self) -> bytes:
        """Pack the scripts as launched into a compressed tar; raises RecordError if they changed."""
        return pack(self.code, self.signed_record().code)

    def sync_streams(self) -> None:
        """Have the disk keep what has come of logs, metrics and samples; raises OSError."""
        for file in (*self.logs().values(), self.metrics, self.gpu):
            file.sync()
        for folder in (self.files.folder("logs"), self.files):
            folder.sync()

    def gpu_bytes(self, node: str) -> int:
        """Return the bytes of a node's GPU samples received so far."""
        return self._samples.bytes_of(node)

    def logs(self) -> dict[int, File]:
        """Return {rank: its log} in the order of the ranks, without foreign files."""
        ranks = []
        for entry in self.files.folder("logs").entries():
            match = LOG_NAME.fullmatch(entry.name)
            if match and entry.is_file:
                ranks.append(int(match[1]))
        return {rank: self.log(rank) for rank in sorted(ranks)}


def is_id(name: str) -> bool:
    """Return whether a folder's name is a job's id: its name, and a time stamp."""
    return bool(JOB_ID.fullmatch(name))


def name_of(job_id: str) -> str:
    """Return the job's name: its id without the time stamp."""
    return job_id[:-STAMP_LENGTH]


def stamp_of(job_id: str) -> str:
    """Return the time stamp of an id, which begins with an underscore."""
    return job_id[-STAMP_LENGTH:]


def _events(lines: bytes) -> Iterator[Event]:
    for line in lines.splitlines():
        with contextlib.suppress(*UNREADABLE):  # a line that UGRO did not write
            yield decode(Event, line)
