"""UGRO: a few machines with one GPU each train together, over plain SSH."""

__version__ = "0.1.0"
