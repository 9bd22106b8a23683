"""The parts of train_production.py; train_single_test.py uses `checkpoints` and `stopping`, too.

Without torch, for checks before its import: faults, settings, by_hand, rules, preflight, checkpoints, stopping.
With torch: gang, memory, data, model, arguments, trainer. The model card is written by `card`.
"""
