"""The checkout tried on a machine where nothing was installed by hand: `scripts/fresh`."""
