"""All code that runs on a node. It stands alone: Python >= 3.8, standard library, nothing else of the package.

It is never installed on a node. The folder travels as one small zip with the request that needs it, and one run
answers one request, or all of a launch (see `main`). A job on a node is a folder and one supervisor process:

    plan.json          what to run (argv, env, node, slot, ...), written by `prepare`
    node.zip           this folder, which the supervisor runs from
    supervisor.json    the supervisor's pid, start time and boot id
    torchrun.json      the same of torchrun, from the moment it runs
    stop.json          why it was told to stop, and with how much grace
    exit.json          how it ended; the last thing that a supervisor writes
    log, gpu.jsonl     stdout+stderr of the rank; GPU samples
    code/, output/     the scripts as launched; what they write (UGRO_OUTPUT_DIR)

Whatever belongs to a rank carries UGRO_TOKEN=<job_id>.<nonce>:<node>:<slot> in its environment and is found by it,
whoever its parent is by then. A node's lease is an flock that the supervisor holds and the kernel frees.
"""
