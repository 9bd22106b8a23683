"""The parts of train_production.py and train_single_test.py.

Without torch, for checks before its import: faults, settings, by_hand, rules, inputs, checkpoints, stopping, metrics.
With torch: ranks, memory, data, model, arguments, trainer. The model card is written by `card`.
train_single_test.py uses only char_transformer, checkpoints, metrics and stopping.
"""
