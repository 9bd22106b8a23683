"""The program that runs on a node: Python >= 3.8, standard library, independent of the package.

It is never installed on a node. The folder travels as a small zip with each request, and one
process answers one request, or all requests of a launch (see `main`). A job on a node is a folder
and a supervisor process:

    plan.json          the rank to run (argv, env, node, slot, ...), written by `prepare`
    node.zip           this folder, from which the supervisor runs
    supervisor.json    the supervisor's pid, start time and boot id
    torchrun.json      the same of torchrun, once it runs
    stop.json          the reason and the grace of a stop
    exit.json          the exit record, the last thing written by a supervisor
    log, gpu.jsonl     stdout and stderr of the rank; GPU samples
    code/, output/     the scripts as launched; their output (UGRO_OUTPUT_DIR)

Each process of a rank has UGRO_TOKEN=<job_id>.<nonce>:<node>:<slot> in its environment and is found
by it, whatever its parent. A node's lease is a name of the machine's, held by the supervisor and
freed by the kernel.
"""
