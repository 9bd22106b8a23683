"""Speed, side by side with what a user would pick instead, both in one run. Each module prints a table of ratios.

    python -m benchmarks.health        inv health beside pdsh and parallel-ssh
    python -m benchmarks.first_line    from Enter to the script's first line, beside three typed ssh commands
    python -m benchmarks.capture       log capture, beside ssh ... cat > file

They bring up a lab of three hosts on this machine (root, Linux); absolute seconds mean little there, ratios do.
"""
