"""Between any front-end and any back-end: recorded, broken on purpose, as `userdev.interposer` has it.

Guest memory, kicks and calls go past it: what it sees is the connection, and the channel of the back-end's beside it.
"""
