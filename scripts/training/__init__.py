"""What train_production.py is made of; `checkpoints` and `stopping` are train_single_test.py's, too.

Without torch, for what is said before the imports: faults, settings, preflight, checkpoints, stopping.
With it: gang, data, model, arguments, trainer; and card, which writes the model card.
"""
