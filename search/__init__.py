"""Spaces, 1-bit layers, supernets, search strategies and training. Importing this alone costs nothing."""
