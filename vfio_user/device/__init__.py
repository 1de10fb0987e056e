"""What a device author touches: registers, BARs, interrupts, DMA, state, reset."""
