"""Recipes of guest images, and the programs that run inside the guest."""
