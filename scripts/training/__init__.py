"""What train_production.py is made of; `checkpoints` and `stopping` are train_single_test.py's, too.

Without torch, for what is said before the imports: faults, settings, by_hand, rules, preflight, checkpoints, stopping.
With it: gang, memory, data, model, arguments, trainer; and card, which writes the model card.
"""
