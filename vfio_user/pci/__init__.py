"""Configuration space, capabilities and BARs, as PCI specifies them. No I/O."""
