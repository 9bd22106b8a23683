"""A stand-in for nvidia-smi: answers queries from a recording in the real program's words.

    nvidia-smi -L
    nvidia-smi --query-gpu=FIELDS --format=csv[,noheader][,nounits] [-i INDEX]
    nvidia-smi --query-compute-apps=FIELDS --format=csv[,noheader][,nounits]

The recording is gpus.json beside this program: `gpus` and `compute_apps`, one object of fields
each, or `stdout` and `exit_code` of a broken GPU. As the real one does, it writes its complaints
to standard output. Exit codes are those of the manual's section "RETURN VALUE".
"""

import json
import sys
import time
from pathlib import Path

INVALID_ARGUMENT = 2
NOT_FOUND = 6

UNITS = {
    "memory.": "MiB",
    "used_gpu_memory": "MiB",
    "utilization.": "%",
    "fan.speed": "%",
    "power.": "W",
    "clocks.": "MHz",
}
ALIASES = {
    "gpu_name": "name",
    "gpu_uuid": "uuid",
    "gpu_bus_id": "pci.bus_id",
    "fan": "fan.speed",
}
APP_ALIASES = {"name": "process_name", "used_memory": "used_gpu_memory"}


def main(arguments: list[str]) -> int:
    recording = json.loads(Path(__file__).with_name("gpus.json").read_text("utf-8"))
    if "exit_code" in recording:
        print(recording["stdout"], end="")
        return int(recording["exit_code"])
    if arguments in (["-L"], ["--list-gpus"]):
        for gpu in recording["gpus"]:
            print(f"GPU {gpu['index']}: {gpu['name']} (UUID: {gpu['uuid']})")
        return 0
    options = parse(arguments)
    if options.keys() == {"query-gpu", "format"}:
        return show(recording["gpus"], ALIASES, options)
    if options.keys() == {"query-gpu", "format", "id"}:
        wanted = options["id"]
        gpus = recording["gpus"]
        chosen = [gpu for gpu in gpus if wanted in (gpu["index"], gpu["uuid"])]
        if not chosen:
            print("No devices were found")
            return NOT_FOUND
        return show(chosen, ALIASES, options)
    if options.keys() == {"query-compute-apps", "format"}:
        return show(recording["compute_apps"], APP_ALIASES, options)
    print(
        "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help."
    )
    return INVALID_ARGUMENT


def parse(arguments: list[str]) -> dict[str, str]:
    """Parse `--name=value`, and `-i value` as `id`."""
    words = iter(arguments)
    options = {}
    for word in words:
        if word in ("-i", "--id"):
            options["id"] = next(words, "")
        else:
            name, _, value = word.removeprefix("--").partition("=")
            options[name] = value
    return options


def show(
    rows: list[dict[str, str]], aliases: dict[str, str], options: dict[str, str]
) -> int:
    asked = options.get("query-gpu", options.get("query-compute-apps", "")).split(",")
    style = options["format"].split(",")
    if style[0] != "csv":
        print(
            "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help."
        )
        return INVALID_ARGUMENT
    # Without an application on the GPU there is no row with the known fields.
    known = rows[0].keys() if rows else None
    fields = [aliases.get(field.strip(), field.strip()) for field in asked]
    for field in fields:
        if known is not None and field not in known and field != "timestamp":
            print(f'Field "{field}" is not a valid field to query.\n')
            return INVALID_ARGUMENT
    with_units = "nounits" not in style
    if "noheader" not in style:
        print(", ".join(field + unit(field, " [{}]", with_units) for field in fields))
    now = time.strftime("%Y/%m/%d %H:%M:%S.000")
    for row in rows:
        words = []
        for field in fields:
            value = row.get(field, now)
            has_unit = with_units and not value.startswith("[")
            words.append(value + unit(field, " {}", has_unit))
        print(", ".join(words))
    return 0


def unit(field: str, form: str, wanted: bool) -> str:
    for beginning, name in UNITS.items():
        if wanted and field.startswith(beginning):
            return form.format(name)
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
