"""The spec of a job from flags, and its record."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from .. import __version__
from ..cluster.model import Cluster
from ..errors import UsageError
from ..jobs.checkpoints import resume_from
from ..jobs.experiments import Experiments
from ..jobs.record import Code, JobRecord
from ..jobs.spec import JobSpec
from ..training.batch_sizes import requested_sizes
from ..training.settings import resolve


def spec_from(
    cluster: Cluster,
    name: str | None = None,
    /,
    *,
    model: str | None = None,
    dataset: str | None = None,
    epochs: int | str | None = None,
    learning_rate: float | str | None = None,
    script: str | None = None,
    args: str | None = None,
    settings: Iterable[str] = (),
    env: Mapping[str, str] | Iterable[str] = (),
    resume: str | None = None,
    **more: Any,
) -> JobSpec:
    """Return the spec of a launch from flags, else the job to resume, else the cluster file.

    None is a flag not given. A job without a name gets that of the job to resume, or of its script. `more` goes into
    the spec unchanged. Raises UsageError, or JobNotFound for the job to resume.
    """
    words = None if args is None else _words(args)
    variables = _variables(env)
    source = Experiments(cluster.experiments).find(resume) if resume else None
    before = source.signed_record() if source else None
    script = script or (before or cluster.training).script
    resolved = resolve(
        cluster,
        script=script,
        model=model,
        dataset=dataset,
        epochs=epochs,
        learning_rate=learning_rate,
        sets=list(settings),
        base=before.settings if before else None,
    )
    if before:
        name = before.name if name is None else name
        variables = before.env | variables
        words = before.args if words is None else words
    return JobSpec(
        name=Path(script).stem if name is None else name,
        script=script,
        model=resolved["model"]["name"],
        dataset=resolved["dataset"]["name"],
        epochs=resolved["training"]["num_epochs"],
        learning_rate=resolved["training"]["learning_rate"],
        args=words or (),
        env=variables,
        settings=resolved,
        resume=resume_from(source) if source else None,
        **more,
    )


def _words(args: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(args))
    except ValueError as error:
        raise UsageError(
            f"--args {args!r}: {error}; quote it as for a shell"
        ) from error


def _variables(env: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """Read the variables from a mapping, or from words like KEY=VALUE. Raises UsageError."""
    if isinstance(env, Mapping):
        return {key: str(value) for key, value in env.items()}
    variables = {}
    for pair in env:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--env {pair}: use KEY=VALUE")
        variables[key] = value
    return variables


def draft(spec: JobSpec, cluster: Cluster) -> JobRecord:
    """Return the record of a job without an id; raises UsageError for a spec that cannot run."""
    spec.checked()
    requested_sizes(cluster, spec.settings)
    if spec.min_nodes is not None and not 1 <= spec.min_nodes <= len(cluster.nodes):
        raise UsageError(
            f"--min-nodes {spec.min_nodes}: use a number from 1 to {len(cluster.nodes)}, of the nodes"
        )
    if not (cluster.scripts / spec.script).is_file():
        known = ", ".join(sorted(path.name for path in cluster.scripts.glob("*.py")))
        raise UsageError(
            f"--script {spec.script}: not in {cluster.scripts}; there is {known or 'no script'}"
        )
    return JobRecord(
        job_id=f"{spec.name}_<time>",
        nonce=secrets.token_hex(4),
        **msgspec.structs.asdict(spec),
        started_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        nodes=tuple(node.name for node in cluster.nodes),
        code=Code(sha256="", git_commit=None),
        cluster=cluster.as_json(),
        ugro_version=__version__,
    )
