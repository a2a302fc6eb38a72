"""Search, train, export and bench 1-bit convolutional networks that meet a latency budget on your device."""

__version__ = "0.1.0"
