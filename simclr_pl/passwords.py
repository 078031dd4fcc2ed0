"""Passwords that the user's netrc file keeps for servers."""

import netrc
import os
from pathlib import Path


def password_for(host: str) -> tuple[str, str] | None:
    """Name and password for a server; `None` where no netrc file that can be read has them.

    The file is the one that NETRC names, else `~/.netrc` or `~/_netrc`.
    """
    for place in (os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"):
        try:
            found = netrc.netrc(place).authenticators(host) if place else None
        except (OSError, netrc.NetrcParseError):
            continue
        if found:
            login, account, password = found
            return login or account or "", password or ""
    return None
