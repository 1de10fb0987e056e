"""Between any client and any server of a protocol: what an interposer is, whatever it stands between.

A protocol has a session, which it makes of a client's and a server's connection, and says of its messages what faults
have to know. Listening, servers, faults and the control socket are here.
"""
