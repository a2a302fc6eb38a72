"""Spaces, 1-bit layers, supernets, search strategies and training. Importing this costs nothing: torch comes with the parts."""
