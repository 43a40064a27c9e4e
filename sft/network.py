"""Whether a server answers, found out within a bounded time."""

from __future__ import annotations

import threading


def reachable(url: str, seconds: float) -> bool:
    """True when ``url`` gives any HTTP answer within ``seconds``; the environment's proxies are used.

    The request runs in a thread of its own because a name server that does not answer is bounded by no timeout of
    requests'.
    """
    import requests

    answered = threading.Event()

    def ask() -> None:
        try:
            requests.head(url, timeout=seconds, allow_redirects=False)
        except (requests.RequestException, ValueError):  # ValueError: a proxy or host name that is none
            return
        answered.set()

    thread = threading.Thread(target=ask, name="reachable", daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
