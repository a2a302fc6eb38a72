"""1-bit layers: quantizers, the fused unit, and the blocks of the spaces."""
