"""Exit with 0 if a server on this machine answers 200, and with 1 and a line if it does not.

``python healthcheck.py https://127.0.0.1:8443/health``. The certificate is not checked: it is that
of the name by which others reach the server.
"""

import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

_SECONDS = 8.0


def main(url: str) -> int:
    """The exit code for one address."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port
    connection: HTTPConnection
    if parts.scheme == "https":
        unchecked = ssl.create_default_context()
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        connection = HTTPSConnection(host, port, timeout=_SECONDS, context=unchecked)
    else:
        connection = HTTPConnection(host, port, timeout=_SECONDS)
    try:
        connection.request("GET", parts.path or "/")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        print(f"{url} does not answer: {error}")
        return 1
    finally:
        connection.close()
    if status != 200:
        print(f"{url} answers {status}")
    return int(status != 200)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
