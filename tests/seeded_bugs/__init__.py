"""Bugs to be put in on purpose, each with the test that must fail then: whether the suite would notice.

`bugs/` has them as data: lines of a module, and the wrong lines in their place. Nothing of a bug is in the code that
ships. `scripts/detect` plants one after the other (`planting.py`: when a process imports the module, so that servers
which a test starts have it too) and runs the named tests (`detection.py`).
"""
