"""A stand-in for pixi, pixi-pack and pixi-unpack, after their documentation.

    pixi --version
    pixi lock [--manifest-path PATH]
    pixi install --locked|--frozen --environment NAME --manifest-path PATH
    pixi shell-hook --json --frozen --no-install --environment NAME --manifest-path PATH
    pixi-pack --environment NAME --platform PLATFORM --output-file FILE PATH
    pixi-unpack --output-directory FOLDER --env-name NAME FILE

Its version is the file pixi.version beside it. The lock holds the manifest's digest, so a stale one
is recognised. An environment is a virtual environment with a stand-in torch of the manifest's
version, for CUDA or not as in the first platform usable on this machine, and with an activation
script. Error messages are those of pixi 0.77.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
from pathlib import Path
from typing import Any, NoReturn

CROSS = "\u00d7"
ACTIVATION = 'export STAND_IN_ACTIVATED="by a script of $CONDA_PREFIX"\n'


def main(words: list[str]) -> None:
    if Path(sys.argv[0]).name == "pixi-pack":
        return pack(words)
    if Path(sys.argv[0]).name == "pixi-unpack":
        return unpack(words)
    if words == ["--version"]:
        print(f"pixi {version()}")
    elif words[0] == "lock":
        lock(manifest_of(words))
    elif words[0] == "install":
        install(words)
    elif words[0] == "shell-hook":
        shell_hook(words)
    else:
        fail(f"unexpected argument '{words[0]}' found")
    return None


def version() -> str:
    return Path(sys.argv[0]).resolve().with_name("pixi.version").read_text().strip()


def fail(message: str, help_: str = "") -> NoReturn:
    print(f"Error:   {CROSS} {message}", file=sys.stderr)
    if help_:
        print(f"  help: {help_}", file=sys.stderr)
    sys.exit(1)


def value(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def manifest_of(words: list[str]) -> Path:
    if "--manifest-path" in words:
        return Path(value(words, "--manifest-path"))
    path = Path("pixi.toml")
    if not path.exists():
        path = Path("pyproject.toml")
    return path.resolve()


def read(manifest: Path) -> dict[str, Any]:
    document = tomllib.loads(manifest.read_text())
    if manifest.name == "pixi.toml":
        return document
    found: dict[str, Any] = document["tool"]["pixi"]
    return found


def lock(manifest: Path) -> None:
    found = {
        "version": 7,
        "manifest": digest(manifest),
        "torch": torch_of(read(manifest)),
    }
    manifest.with_name("pixi.lock").write_text(json.dumps(found) + "\n")


def digest(manifest: Path) -> str:
    text = json.dumps(read(manifest), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def torch_of(workspace: dict[str, Any]) -> str:
    tables = [workspace, *workspace.get("feature", {}).values()]
    for table in tables:
        dependencies = table.get("dependencies", {})
        if "pytorch" in dependencies:
            return str(dependencies["pytorch"])
    fail("the stand-in needs pytorch among the dependencies")


def checked_lock(manifest: Path, words: list[str]) -> dict[str, Any]:
    path = manifest.with_name("pixi.lock")
    found: dict[str, Any] = {}
    if path.exists():
        found = json.loads(path.read_text())
    if "--locked" in words and found.get("manifest") != digest(manifest):
        fail("lock-file not up-to-date with the workspace")
    return found


def install(words: list[str]) -> None:
    manifest = manifest_of(words)
    name = value(words, "--environment")
    found = checked_lock(manifest, words)
    workspace = read(manifest)
    if name != "default" and name not in workspace.get("environments", {}):
        fail(f"unknown environment '{name}' in {manifest}")
    folder = manifest.parent / ".pixi" / "envs" / name
    make(folder, found["torch"], platform_for(workspace, name), manifest, name)
    print(f"✔ The {name} environment has been installed.", file=sys.stderr)


def platform_for(workspace: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the manifest's first platform usable on this machine."""
    driver = os.environ.get("CONDA_OVERRIDE_CUDA") or shutil.which("nvidia-smi")
    for entry in workspace["workspace"]["platforms"]:
        platform = entry if isinstance(entry, dict) else {"platform": entry}
        if driver or "cuda" not in platform:
            return platform
    fail(
        f"Cannot install environment '{name}'\n  ╰─▶ Virtual package '__cuda' does not match any of the available "
        "virtual packages on your machine: [__glibc=2.36=0, __unix=0=0, __linux=6.1.0=0]",
        "You can mock the virtual package by overriding the environment variable, e.g.: '`CONDA_OVERRIDE_CUDA=12.0`'",
    )


def make(
    folder: Path, torch: str, platform: dict[str, Any], manifest: Path, name: str
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "torch").mkdir()
    (packages / "torch" / "__init__.py").touch()
    cuda = "12.9" if "cuda" in platform else None
    (packages / "torch" / "version.py").write_text(
        f"__version__ = {torch + '+stand.in'!r}\ncuda = {cuda!r}\n"
    )
    for path in ("conda-meta", "etc/conda/activate.d"):
        (folder / path).mkdir(parents=True)
    meta = {
        "manifest_path": str(manifest),
        "environment_name": name,
        "pixi_version": version(),
    }
    (folder / "conda-meta" / "pixi").write_text(json.dumps(meta))
    (folder / "etc/conda/activate.d/stand-in.sh").write_text(ACTIVATION)


def shell_hook(words: list[str]) -> None:
    manifest = manifest_of(words)
    name = value(words, "--environment")
    folder = manifest.parent / ".pixi" / "envs" / name
    if "--no-install" in words and not folder.exists():
        fail(f"environment '{name}' is not installed")
    activate = f"export CONDA_PREFIX={folder} PIXI_ENVIRONMENT_NAME={name} PATH={folder}/bin:$PATH\n"
    for script in sorted(folder.glob("etc/conda/activate.d/*.sh")):
        activate += f". {script}\n"
    tell = "import json, os; print(json.dumps({'environment_variables': dict(os.environ)}))"
    subprocess.run(
        ["bash", "-c", f'{activate} exec "$0" -c "$1"', sys.executable, tell],
        check=True,
    )


def pack(words: list[str]) -> None:
    manifest = Path(words[-1])
    found = checked_lock(manifest, [])
    content = Path(value(words, "--output-file")).with_suffix(".json")
    content.write_text(json.dumps({"torch": found["torch"], "manifest": str(manifest)}))
    with tarfile.open(value(words, "--output-file"), "w") as archive:
        archive.add(content, "pixi-pack.json")
    content.unlink()


def unpack(words: list[str]) -> None:
    folder = Path(value(words, "--output-directory"))
    name = value(words, "--env-name")
    with tarfile.open(words[-1]) as archive:
        content = archive.extractfile("pixi-pack.json")
        assert content
        found = json.load(content)
    make(folder / name, found["torch"], {}, Path(found["manifest"]), name)
    prefix = folder / name
    (folder / "activate.sh").write_text(
        f'export PATH="{prefix}/bin:$PATH"\nexport CONDA_PREFIX="{prefix}"\n'
        f'. "{prefix}/etc/conda/activate.d/stand-in.sh"\n'
    )


if __name__ == "__main__":
    main(sys.argv[1:])
