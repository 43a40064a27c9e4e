"""Whether a server answers, within a bounded time."""

from __future__ import annotations

import threading


def reachable(url: str, seconds: float) -> bool:
    """Whether ``url`` gives any HTTP answer within ``seconds``. The environment's proxies are used.

    The request runs in its own thread because the timeout of requests does not cover DNS.
    """
    import requests

    answered = threading.Event()

    def ask() -> None:
        try:
            requests.head(url, timeout=seconds, allow_redirects=False)
        except (requests.RequestException, ValueError):  # ValueError: an invalid proxy or host name
            return
        answered.set()

    thread = threading.Thread(target=ask, name="reachable", daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
