"""How much of what could be wrong the unit tests notice: small changes to the code, each against tests that reach it.

`scripts/mutants` draws a sample of them per room (`sampling.py`), with mutmut's operators (`mutations.py`), from what
coverage has seen each test reach, servers in child processes included (`reach.py`), plants each as a seeded bug is
planted, and prints the score by room. What changes nothing that anybody could see is in `equivalent.yaml`, with why.
"""
