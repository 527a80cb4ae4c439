"""Sockets on which the app's services listen."""

import socket

from flower_app.errors import SettingError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address of IPv4 or IPv6; port 0 takes a free one.

    A name that has addresses of both is listened to on IPv4, which its callers try as well.

    Raises
    ------
    SettingError
        If the address is not this machine's, or taken.
    """
    try:
        families = [found[0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        family = socket.AF_INET if socket.AF_INET in families else families[0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        raise SettingError(f"cannot listen on {host}, port {port}: {error}") from error
