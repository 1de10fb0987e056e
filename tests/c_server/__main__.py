"""`python -m tests.c_server`: print the path of the server, built when it is not there yet."""

from tests.c_server import c_server

print(c_server())
