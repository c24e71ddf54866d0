"""Names under which a browser reaches a server on this machine. Both servers refuse others, against DNS rebinding."""

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Those of the loopback address, used directly or through a tunnel with another port."""


def host_name(host: str) -> str:
    """Returns the name in a Host header, in lower case and without the port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and (port.isdigit() or not port) else host).lower()
