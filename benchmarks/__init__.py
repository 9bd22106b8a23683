"""Speed, side by side with what a user would pick instead, both in one run. Each module prints a table of ratios.

    python -m benchmarks.health        inv health beside pdsh, parallel-ssh, pyinfra and ansible; --hosts, --delay
    python -m benchmarks.start         inv --list and inv status beside inv --version
    python -m benchmarks.listing       status of 10,000 jobs beside ls, logs of 1 GB beside tail
    python -m benchmarks.first_line    from Enter to the script's first line, beside three typed ssh commands
    python -m benchmarks.latency       a line's way to the terminal, beside ssh tail -f
    python -m benchmarks.capture       log capture, beside ssh ... cat > file and Fabric's own run
    python -m benchmarks.ending        a rank that dies, Ctrl-C: until all hosts are free, beside torchrun over ssh
    python -m benchmarks.gathering     2 GB of outputs, and again unchanged, beside rsync
    python -m benchmarks.throughput    tokens a second of a training, beside the same torchrun by hand
    python -m benchmarks.idle          what the agent takes while a job runs quietly

Each has --help. They bring up a lab of hosts on this machine (root, Linux); absolute seconds mean little there, ratios
do. What is missing of what they stand UGRO beside is named, with how it is installed, and left out. The figures of the
last run stand in docs/benchmarks.md.

No measure of speed but a check of an estimate, whose figures stand in docs/decisions.md:

    python -m benchmarks.memory_estimate    what a training is expected to need beside what torch keeps alive
"""
